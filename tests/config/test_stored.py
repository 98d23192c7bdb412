"""A run directory may come from anybody: its configuration names nothing that is not trusted, and runs no code."""

import ast

import pytest
import yaml
from omegaconf import OmegaConf

from fedbayes import load, simulate
from fedbayes.config.instantiate import ROOT
from fedbayes.config.stored import read
from fedbayes.errors import RunError
from fedbayes.run import resume


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    simulate(["experiment=smoke", "rounds=1", f"run_dir={run_dir}"])
    return run_dir


@pytest.fixture
def edit(finished, tmp_path):
    """Write a copy of the run's configuration with one value changed; give the new run directory."""

    def change(place, value):
        cfg = OmegaConf.load(finished / "config.yaml")
        OmegaConf.update(cfg, place, value, force_add=True)
        OmegaConf.save(cfg, tmp_path / "config.yaml")
        (tmp_path / "summary.json").write_text("{}")
        return tmp_path

    return change


PICKLE = {"_target_": "torch.load", "f": "evil.pt", "weights_only": False}


@pytest.mark.parametrize(
    ("place", "target"),
    [
        ("method.client._target_", "os.system"),
        ("method.strategy._target_", "builtins.eval"),
        ("data._target_", "torch.load"),
        ("backbone._target_", "pickle.load"),
        ("optim._target_", "fedbayes.run.os.system"),
        ("optim._target_", "clients.base.torch.load"),
        ("optim._target_", "fedbayesian.thing"),
        ("optim._target_", 3),
        # Ours, and yet they do what their arguments say.
        ("optim._target_", "fedbayes.build.client_of"),
        ("optim._target_", "fedbayes.run.simulate"),
        ("optim._target_", "fedbayes.storage.run_dir.replace_text"),
        ("method.strategy._target_", "flwr.serverapp.strategy.fedavg.log"),
        ("method.strategy._target_", "flwr.serverapp.strategy.Result"),
        ("tracking.destinations", [PICKLE]),
        ("evaluate.every", {"deep": [PICKLE]}),
        ("method.client.optim", PICKLE),
    ],
)
def test_unknown_targets_are_refused_before_anything_is_called(edit, place, target):
    run_dir = edit(place, target)
    for command in (read, load):
        with pytest.raises(RunError, match="which is no target"):
            command(run_dir)
    (run_dir / "summary.json").unlink()
    with pytest.raises(RunError, match="which is no target"):
        resume(run_dir)


def test_targets_of_runs_and_flowers_strategies_are_known(finished, edit):
    assert read(finished).names.method == "pfedbayespt"
    strategy = "flwr.serverapp.strategy.FedAdam"
    assert read(edit("method.strategy._target_", strategy)).method.strategy._target_ == strategy


def test_modules_that_the_user_lists_are_trusted(edit, tmp_path, monkeypatch):
    (tmp_path / "my_methods.py").write_text("def make():\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    run_dir = edit("method.client._target_", "my_methods.make")
    with pytest.raises(RunError, match="FEDBAYES_TRUST"):
        read(run_dir)
    monkeypatch.setenv("FEDBAYES_TRUST", "other, my_methods")
    assert read(run_dir).method.client._target_ == "my_methods.make"


@pytest.mark.parametrize(
    "reference", ["${oc.env:SECRET}", '"\\x24{oc.env:SECRET}"', '"\\u0024{oc.create:{_target_: torch.load}}"']
)
def test_references_are_refused_however_they_are_spelt(finished, tmp_path, reference):
    text = (finished / "config.yaml").read_text()
    assert "device: auto" in text
    (tmp_path / "config.yaml").write_text(text.replace("device: auto", f"device: {reference}"))
    with pytest.raises(RunError, match="holds a reference"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no mapping|lacks"),
        ("- 1\n- 2\n", "holds no mapping"),
        ("a: [", "cannot be read"),
        ("a: !!python/object/apply:os.system ['true']\n", "cannot be read"),
        ("\0\1\2", "cannot be read"),
        ("a: &a [*a]\n", r"holds an alias \(\*name\)"),
        ("a: &a [x, x]\nb: [*a, *a]\n", r"holds an alias \(\*name\)"),
        ("a: " + "[" * 5000, "cannot be read"),
        ("seed: 0\nnames: x\n", "names=x holds no choices"),
        ("seed: 0\nnames: {}\n", "lacks rounds, clients, participation: another version"),
    ],
)
def test_files_that_are_no_configuration_are_refused(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(RunError, match=message):
        read(tmp_path)


def test_keys_that_an_older_version_lacks_are_named(finished, tmp_path):
    cfg = OmegaConf.to_container(OmegaConf.load(finished / "config.yaml"))
    del cfg["faults"], cfg["simulation"]["retries"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(cfg))
    with pytest.raises(RunError, match=r"lacks faults, .*another version"):
        read(tmp_path)


FILES = [file for folder in ("fedbayes", "clients", "strategies") for file in (ROOT / folder).rglob("*.py")]
BANNED = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}


def test_no_module_reads_files_in_a_way_that_can_run_code():
    """No pickle and no eval: torch.load and numpy.load occur only with their safe settings."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names}
                modules = {node.module or ""} if isinstance(node, ast.ImportFrom) else names
                assert not {module.split(".")[0] for module in modules} & BANNED or names == {"UnpicklingError"}, path
            if isinstance(node, ast.Call):
                function = ast.unparse(node.func)
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert function not in ("eval", "exec", "compile", "__import__"), path
                if function.startswith("torch.") and function.endswith(".load"):
                    assert keywords.get("weights_only") == "True", path
                if function in ("np.load", "numpy.load"):
                    assert keywords.get("allow_pickle") == "False", path
