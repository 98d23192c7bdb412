"""What is read back from a directory may come from anybody: it names nothing that is not trusted, and runs no code."""

import pytest
import yaml
from omegaconf import OmegaConf

from fedbayes import load, simulate
from fedbayes.config import stored as stored_configuration
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


def test_what_a_run_wrote_is_read(finished):
    assert read(finished).names.method == "pfedbayespt"


PICKLE = {"_target_": "torch.load", "f": "evil.pt", "weights_only": False}


@pytest.mark.parametrize(
    ("place", "target"),
    [
        ("method.client._target_", "os.system"),
        ("method.client._target_", "subprocess.Popen"),
        ("method.strategy._target_", "builtins.eval"),
        ("data._target_", "torch.load"),
        ("data._target_", "numpy.load"),
        ("backbone._target_", "pickle.load"),
        ("optim._target_", "fedbayes.run.os.system"),
        ("optim._target_", "clients.base.torch.load"),
        ("optim._target_", "fedbayes.run.sys.modules"),
        ("optim._target_", "fedbayesian.thing"),
        ("optim._target_", "fedbayes.nothing.here"),
        ("optim._target_", 3),
        # Ours, and yet they do what their arguments say.
        ("optim._target_", "fedbayes.build.client_of"),
        ("optim._target_", "fedbayes.run.simulate"),
        ("optim._target_", "fedbayes.run.dry_run"),
        ("optim._target_", "fedbayes.storage.run_dir.replace_text"),
        ("method.strategy._target_", "flwr.serverapp.strategy.fedavg.log"),
        ("method.strategy._target_", "flwr.serverapp.strategy.Result"),
        ("tracking.destinations", [PICKLE]),
        ("evaluate.every", {"deep": [PICKLE]}),
        ("method.client.optim", PICKLE),
    ],
)
def test_targets_that_are_not_known_are_refused_before_anything_is_called(edit, place, target):
    run_dir = edit(place, target)
    for command in (read, load):
        with pytest.raises(RunError, match="which is no target of fedbayes's configuration nor a strategy of Flower's"):
            command(run_dir)
    (run_dir / "summary.json").unlink()
    with pytest.raises(RunError, match="which is no target"):
        resume(run_dir)


def test_flowers_strategies_are_known(edit):
    assert read(edit("method.strategy._target_", "flwr.serverapp.strategy.FedAdam"))


def test_modules_that_the_user_lists_are_trusted(edit, tmp_path, monkeypatch):
    (tmp_path / "my_methods.py").write_text("def make():\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    run_dir = edit("method.client._target_", "my_methods.make")
    with pytest.raises(RunError, match="list its module in the environment variable FEDBAYES_TRUST"):
        read(run_dir)
    monkeypatch.setenv("FEDBAYES_TRUST", "other, my_methods")
    assert read(run_dir).method.client._target_ == "my_methods.make"


def test_references_are_refused_so_that_no_secret_is_looked_up(edit, monkeypatch):
    monkeypatch.setenv("SECRET", "hidden")
    with pytest.raises(RunError, match="holds a reference"):
        read(edit("data.root", "${oc.env:SECRET}"))


@pytest.mark.parametrize("hidden", ['"\\x24{oc.env:SECRET}"', '"\\u0024{oc.create:{_target_: torch.load}}"'])
def test_references_are_seen_however_they_are_spelt(finished, tmp_path, hidden):
    text = (finished / "config.yaml").read_text()
    assert "device: auto" in text
    (tmp_path / "config.yaml").write_text(text.replace("device: auto", f"device: {hidden}"))
    with pytest.raises(RunError, match="holds a reference"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
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
        ("seed: 0\nnames: {}\n", "lacks rounds, clients, participation: another version of fedbayes wrote it"),
    ],
)
def test_files_that_are_no_configuration_are_refused(tmp_path, text, said):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(RunError, match=said):
        read(tmp_path)


def test_a_configuration_of_an_older_version_says_what_it_lacks(finished, tmp_path):
    cfg = OmegaConf.to_container(OmegaConf.load(finished / "config.yaml"))
    del cfg["faults"], cfg["simulation"]["retries"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(cfg))
    with pytest.raises(RunError, match=r"lacks faults, .*another version"):
        read(tmp_path)


def test_nothing_that_can_run_code_reads_a_users_file():
    """No pickle and no eval: torch.load and numpy.load occur only with their safe settings."""
    import ast
    from pathlib import Path

    root = Path(stored_configuration.__file__).parents[2]
    banned = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    for path in [file for folder in ("fedbayes", "clients", "strategies") for file in (root / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {name.name for name in node.names}
                module = getattr(node, "module", None) or ""
                found = {one.split(".")[0] for one in ({module} if module else names)} & banned
                assert not found or names == {"UnpicklingError"}, (path, found)
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                keywords = {one.arg: ast.unparse(one.value) for one in node.keywords}
                assert called not in ("eval", "exec", "compile", "__import__"), path
                if called.split(".")[-1] == "load" and called.split(".")[0] == "torch":
                    assert keywords.get("weights_only") == "True", path
                if called in ("np.load", "numpy.load"):
                    assert keywords.get("allow_pickle") == "False", path
