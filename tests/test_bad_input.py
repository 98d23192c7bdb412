"""A user's mistake gives one line with value, place and remedy, exit status 2, and leaves nothing behind."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from fedbayes.config.compose import CONF
from fedbayes.run import main


@pytest.fixture
def fails(tmp_path, monkeypatch, capsys):
    """Run the command, which must fail properly, and return its line of error."""

    def run(*overrides, run_dir=tmp_path / "run"):
        monkeypatch.setattr(sys, "argv", ["fedbayes", "experiment=smoke", f"run_dir={run_dir}", *overrides])
        existed = set(run_dir.rglob("*"))
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 2
        output = capsys.readouterr()
        assert len(output.out.splitlines()) <= 1, "a title at most"
        assert len(output.err.splitlines()) == 1, output.err
        assert set(run_dir.rglob("*")) == existed
        assert run_dir.exists() == bool(existed)
        return output.err.strip()

    return run


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for domain in ("day", "night"):
        for label in ("cat", "dog"):
            (root / domain / label).mkdir(parents=True)
            for i in range(12):
                colour = (20 * i, 100 if label == "cat" else 200, 50 if domain == "day" else 150)
                Image.new("RGB", (20, 16), colour).save(root / domain / label / f"{i}.png")
    return root


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method=foo", "ConfigError: method=foo does not exist; "),
        ("promts.length=3", "ConfigError: promts.length is no key of the"),
        ("rounds=0", "ConfigError: rounds=0 "),
        ("rounds=1.5", "ConfigError: rounds=1.5 "),
        ("seed=-1", "ConfigError: seed=-1 "),
        ("clients=0", "ConfigError: clients=0 "),
        ("clients=5000", "PartitionError: clients=5000 "),
        ("participation=nan", "ConfigError: participation=nan "),
        ("simulation.cohort=0", "ConfigError: simulation.cohort=0 "),
        ("simulation.cache_mb=-1", "ConfigError: simulation.cache_mb=-1 "),
        ("simulation.min_replies=9", "ConfigError: simulation.min_replies=9 "),
        ("optim.lr=nan", "ConfigError: optim.lr=nan "),
        ("optim.name=foo", "ConfigError: optim.name=foo is unknown; choose one"),
        ("optim=sgd", "ConfigError: optim=sgd replaces a whole section"),
        ("inference.num_extra=-1", "ConfigError: inference.num_extra=-1 "),
        ("prompts.start_layer=99", "ConfigError: prompts.start_layer=99 "),
        ("generator.kind=foo", "ConfigError: generator.kind=foo is unknown; choose"),
        ("partition.alpha=-1", "ConfigError: partition.alpha=-1 "),
        ("data.image_size=30", "BackboneError: data.image_size=30 "),
        ("augment.flip=maybe", "ConfigError: augment.flip=maybe "),
        ("attack.fraction=0.5", "ConfigError: attack.fraction=0.5 has no attack;"),
        ("emulator.keep=0.5", "ConfigError: emulator.keep=0.5 has no emulator;"),
        ("owner.images=-1", "ConfigError: owner.images=-1 "),
        ("owner.images=9999", "PartitionError: owner.images=9999 "),
        ("owner.emulator=3", "ConfigError: owner.emulator=3 names no file"),
        ("owner.emulator=no/folder/e", "ConfigError: owner.emulator="),
        ("evaluate.gallery=no", "ConfigError: evaluate.gallery=no is neither true nor"),
        ("method.client.personal=[foo]", "ConfigError: method.client.personal=['foo']: "),
        ("method.client.personal=head", "ConfigError: method.client.personal=head is not a"),
        ("simulation.threads=99999", "ConfigError: simulation.threads=99999 is not a whole"),
        ("data=null", "ConfigError: data=null names no choice; "),
        ("~method", "ConfigError: method has no choice; "),
        ("method.client=null", "ConfigError: method.client=None replaces a whole"),
        ("~evaluate.held_out", "ConfigError: evaluate.held_out is missing; leave out"),
        ("~data._target_", "ConfigError: data._target_=None names nothing; "),
        ("data._target_=builtins.dict", "ConfigError: data._target_=builtins.dict makes a"),
        ("optim._target_=''", "ConfigError: optim._target_= is not installed; "),
        ("inference._target_=3", "ConfigError: method.client.inference: Expected a"),
        ("faults._target_=builtins.dict", "ConfigError: faults: dict does not say what it"),
        ("faults._partial_=false", "ConfigError: faults._partial_=False cannot work"),
        ("tracking.destinations=x", "ConfigError: tracking.destinations=x is no list; "),
        ("method.strategy._target_=builtins.dict", "ConfigError: method.strategy: dict does not say what"),
        ("method.strategy._target_=os.getcwd", "ConfigError: method.strategy._target_=os.getcwd"),
        ("method.strategy._target_=flwr.serverapp.strategy.Strategy", "ConfigError: method.strategy: Strategy is abst"),
        ("+method.strategy.foo=1", "ConfigError: method.strategy: Averaging got an"),
    ],
)
def test_a_value_that_cannot_work(fails, override, message):
    assert fails(override).startswith(message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--round", "3"], "--round is no option; .*did you mean rounds"),
        (["--seed=3"], "--seed=3 is no option; .*did you mean seed"),
        (["--resolve"], "--resolve .*--cfg job --resolve"),
        (["-m", "--method", "fedvpt"], "--method is no option; .*did you mean method"),
        (["--prompts.lenght=3"], r"--prompts\.lenght=3 is no option; .*did you mean prompts\.length"),
        (["--cfg", "foo"], "argument --cfg/-c: .*'foo'"),
        (["--cfg"], "argument --cfg/-c: .*fedbayes --help"),
    ],
)
def test_an_unknown_option(fails, words, message):
    assert re.match(f"ConfigError: {message}", fails(*words))


def test_a_folder_that_is_missing_or_has_no_classes(fails, tmp_path):
    assert "data.root" in fails("data=imagefolder")
    folder = ["data=imagefolder", f"data.root={tmp_path}/photos"]
    assert fails(*folder).startswith(f"DataError: data.root={tmp_path}/photos does not exist")
    (tmp_path / "photos").mkdir()
    assert "has no class folders" in fails(*folder)


def test_an_unreadable_image_is_named_and_skipped_only_on_request(fails, photos, tmp_path, monkeypatch, caplog):
    photos = Path(shutil.copytree(photos, tmp_path / "photos"))
    (photos / "day" / "cat" / "broken.png").write_bytes(b"no picture")
    chosen = ["data=imagefolder", f"data.root={photos}", "clients=2", "partition.test=0.3", "partition.validation=0.2"]
    message = fails(*chosen)
    assert message.startswith(f"DataError: data.root={photos}: day/cat/broken.png ")
    assert "data.on_error=skip" in message
    run_dir = tmp_path / "skipped"
    arguments = ["fedbayes", "experiment=smoke", *chosen, "data.on_error=skip", "rounds=1", f"run_dir={run_dir}"]
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    assert (run_dir / "summary.json").is_file()
    assert "the first day/cat/broken.png" in caplog.text


def nest(root):
    (root / "day" / "cat" / "crops").mkdir()
    shutil.copy(root / "day" / "cat" / "0.png", root / "day" / "cat" / "crops" / "0.png")


def link_twice(root):
    (root / "day" / "cat" / "same.png").symlink_to(root / "night" / "dog" / "0.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nest, r"mixes layouts: .*data\.ignore=\[day/cat/crops\]"),
        (link_twice, r"the same file .*data\.ignore="),
        (lambda root: (root / "night").rename(root / "testing"), r"testing beside day.*data\.splits="),
        (lambda root: [shutil.rmtree(root / domain / "cat") for domain in ("day", "night")], "only one class, dog"),
    ],
)
def test_faults_of_image_folders(fails, photos, tmp_path, change, message):
    photos = Path(shutil.copytree(photos, tmp_path / "photos"))
    change(photos)
    assert re.search(message, fails("data=imagefolder", f"data.root={photos}", "clients=12"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.splits={day:monday}", r"ConfigError: data\.splits=monday"),
        ("data.splits={evening:test}", r"DataError: .*evening.*data\.splits"),
        ("data.splits=day", r"ConfigError: data\.splits=day"),
        ("data.ignore=cat", r"ConfigError: data\.ignore=cat"),
    ],
)
def test_keys_of_image_folders(fails, photos, override, message):
    assert re.match(message, fails("data=imagefolder", f"data.root={photos}", "clients=2", override))


def test_more_clients_than_images(fails, photos):
    message = fails("data=imagefolder", f"data.root={photos}", "clients=40")
    assert re.match("PartitionError: clients=40 .* the data has 48", message)


def test_a_checkpoint_that_does_not_fit(fails, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"blocks.0.attn.qkv.weight": torch.zeros(3, 3)}, path)
    timm = ["backbone=timm", "backbone.name=vit_tiny_patch16_224"]
    message = fails(*timm, f"backbone.checkpoint={path}", "prompts.start_layer=0")
    assert message.startswith(f"BackboneError: backbone.checkpoint={path} does not fit")
    assert fails(*timm, "backbone.checkpoint=/no").startswith("BackboneError: backbone.checkpoint=/no ")


def test_a_directory_that_holds_a_run(fails, tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    assert fails(run_dir=tmp_path).startswith(f"RunError: run_dir={tmp_path} already holds a run")
    assert (tmp_path / "summary.json").read_text() == "{}"


def test_a_failure_after_the_directory_was_claimed_removes_nothing_else(fails, tmp_path):
    fedprox = ["method.strategy._target_=flwr.serverapp.strategy.FedProx", "+method.strategy.proximal_mu=1"]
    assert "sends proximal-mu" in fails(*fedprox)
    assert "tracking.destinations.mode=foo" in fails("tracking=wandb", "tracking.destinations.0.mode=foo")
    (tmp_path / "notes.txt").write_text("notes of the user")
    fails(*fedprox, run_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_hydra_full_error_shows_the_traceback(monkeypatch):
    from hydra.errors import HydraException

    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["fedbayes", "method=foo"])
    with pytest.raises(HydraException):
        main()


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch, tmp_path):
    def broken(*_, **__):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("fedbayes.build.data", broken)
    monkeypatch.setattr(sys, "argv", ["fedbayes", f"run_dir={tmp_path / 'run'}"])
    with pytest.raises(ZeroDivisionError):
        main()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rounds=0", "run_dir=here"], "ConfigError: rounds=0"),
        (["method=foo", "run_dir=here"], "ConfigError: method=foo"),
    ],
)
def test_the_real_command(tmp_path: Path, arguments, message):
    environment = {**os.environ, "PYTHONPATH": str(CONF.parent), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-m", "fedbayes.run", *arguments],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith(message)
    assert len(process.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
