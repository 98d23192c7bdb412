"""Every console command of the README and of `docs/` is run by a test, or marked here with what it needs.

Whatever can run on the bundled data is run here, made small. Of the others the keys and choices are checked.
"""

import re

import pytest
from pages import PAGES, ROOT, SMALL, Shell, commands, words

from fedbayes.config.compose import CONF, compose

PAGE_TESTS = {"docs/client.md", "docs/extend/", "docs/pyro.md", "docs/tutorial.md"}
"""Pages whose commands belong together; tests/docs/test_docs.py runs them in their order."""

ELSEWHERE = {
    "make demo": ".ci/run",
    "make test": ".ci/run",
    "fedbayes": "tests/test_run.py",
    "fedbayes --help": "tests/commands/test_info.py",
    "fedbayes -m method=glob(*) seed=0,1,2": "tests/test_catalogue.py",
    "fedbayes -m method=fedvpt,pfedbayespt seed=0,1,2 hydra/launcher=joblib": "tests/commands/test_sweep.py",
    "fedbayes -m hydra/sweeper=search": "tests/commands/test_sweep.py",
    "fedbayes dry_run=true clients=100": "tests/commands/test_dry_run.py",
    "fedbayes tracking=wandb": "tests/tracking/test_wandb_logger.py",
    "fedbayes simulation=ray": "tests/simulation/test_ray.py",
    "fedbayes simulation=ray simulation.address=10.0.0.1:6379 simulation.num_gpus=0.25": "tests/simulation/test_ray.py",
    "fedbayes simulation.precision=bf16": "tests/models/test_precision.py",
    "fedbayes partition=resampled clients=10000 participation=0.01 evaluate.participation=0.01": (
        "tests/data/partitions/test_resampled.py"
    ),
    "flower_app/run.sh method=fedvpt rounds=3": "tests/flower_app/test_flower_app.py",
    "flower_app/run.sh emulator=gradot": "tests/flower_app/test_emulator.py",
    "python -m fedbayes.commands.emulator": "tests/flower_app/test_emulator.py",
    "wandb sweep": "tests/tracking/test_wandb_sweep.py",
    "fedbayes privacy.secure.kind=shares privacy.secure.bound=5": "tests/strategies/test_secure.py",
    "flower-superlink": "tests/flower_app/test_deployment.py",
    "flower-supernode": "tests/flower_app/test_deployment.py",
    "flwr run": "tests/flower_app/test_deployment.py",
    "fedbayes resume=RUN_DIR": "tests/test_resume.py",
    "fedbayes resume=SWEEP_DIR": "tests/commands/test_resume_sweep.py",
    "fedbayes resume=runs/long": "tests/test_resume.py",
}
"""Commands that another test runs, or what they are made of; each begins as the key says."""

NEEDS = {
    "fedbayes data=imagefolder data.root=photos": "photographs and a checkpoint of timm's",
    "fedbayes experiment=office_mixture": "Office-Caltech10 and a checkpoint of timm's",
}
"""Commands with a need that no machine of ours fills on its own; each begins as the key says."""


def plain(command):
    """The command without its comment and quotes."""
    return " ".join(words(command))


def marked(command, table):
    """The key of a table that the command begins with, the longest."""
    found = [key for key in table if plain(command) == key or (key.count(" ") and plain(command).startswith(f"{key} "))]
    found += [key for key in table if key.startswith("flower-") and plain(command).startswith(key)]
    return max(found, key=len, default=None)


def shown():
    """Every command once, but for the pages that are run as a whole."""
    pages = [page for page in PAGES if not str(page.relative_to(ROOT)).startswith(tuple(PAGE_TESTS))]
    return list({plain(command): command for page in pages for command in commands(page.read_text())}.values())


HERE = [one for one in shown() if marked(one, ELSEWHERE) is None and marked(one, NEEDS) is None]


@pytest.mark.parametrize("command", HERE, ids=plain)
def test_it_runs(command, monkeypatch, tmp_path):
    shell = Shell(monkeypatch, tmp_path)
    asked = words(command)
    shell.run(command, SMALL)
    if asked[0] == "fedbayes":
        assert len(list(tmp_path.rglob("summary.json"))) == 1


@pytest.mark.parametrize("command", [one for one in shown() if one.startswith("fedbayes ")], ids=plain)
def test_its_keys_and_choices_exist(command):
    asked = [one for one in words(command)[1:] if not one.startswith(("-", "resume=", "hydra/", "hydra."))]
    for one in asked:
        key, _, value = one.partition("=")
        if value.startswith("glob("):
            asked[asked.index(one)] = f"{key}=fedvpt"
        elif value.startswith("tag("):  # a search, tag(log,interval(LOW,HIGH))
            asked[asked.index(one)] = f"{key}={value.split('(')[2].split(',')[0]}"
        elif "," in value and not value.startswith("["):
            asked[asked.index(one)] = f"{key}={value.split(',')[0]}"
    compose(asked)


@pytest.mark.parametrize("table", [ELSEWHERE, NEEDS], ids=["elsewhere", "needs"])
def test_no_mark_is_left_over(table):
    used = {marked(command, table) for command in shown()}
    assert set(table) - used == set()


@pytest.mark.parametrize("place", sorted(set(ELSEWHERE.values())))
def test_the_other_test_exists(place):
    assert (ROOT / place).is_file()


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "extend").glob("*.md")), ids=lambda page: page.stem)
def test_pages_that_run_as_a_whole_have_their_test(page):
    assert f'"{page.name}"' in (ROOT / "tests" / "docs" / "test_docs.py").read_text()


def test_overrides_in_running_text_exist():
    """`key=value` in the README's prose, where the key is one of the configuration."""
    prose = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    for group, name in re.findall(
        r"`(?:fedbayes )?(method|data|partition|backbone|simulation|tracking|attack|experiment)=(\w+)`", prose
    ):
        assert (CONF / group / f"{name}.yaml").is_file(), f"{group}={name}"
