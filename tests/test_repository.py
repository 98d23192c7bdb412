"""The repository keeps its promises: a lock without addresses, make targets, sound YAML, small files, one version."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LARGEST_FILE = 4_000_000  # bytes


def canonical(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("sign", ["http:", "https:", "file:", "/", "\\", " @ ", "--", "+"])
def test_lock_holds_no_address_no_path_and_no_local_build(sign):
    assert sign not in LOCK


def test_lock_pins_every_line_to_one_exact_version():
    loose = [line for line in LOCK.splitlines() if line and not re.match(r"[A-Za-z0-9._-]+==[^\s*]+( ;|$)", line)]
    assert loose == []


def test_lock_holds_everything_the_project_asks_for():
    asked = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    names = {canonical(re.match(r"[A-Za-z0-9._-]+", one).group()) for one in asked}
    locked = {canonical(line.split("==")[0]) for line in LOCK.splitlines()}
    assert names - locked == set()


@pytest.mark.slow
@pytest.mark.parametrize("extra", sorted(PROJECT["optional-dependencies"]))
def test_every_extra_can_be_installed_beside_the_rest(extra):
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--extra", extra, str(ROOT / "pyproject.toml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("target", ["help", "setup", "demo", "test", "lint", "clean"])
def test_makefile_has_the_target(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_continuous_integration_is_executable_and_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "make test" in script.read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "conf").rglob("*.yaml")), ids=lambda path: path.stem)
def test_configuration_is_a_yaml_mapping(path):
    parsed = yaml.safe_load(path.read_text())
    assert isinstance(parsed, dict), f"{path} holds {type(parsed).__name__}"


def test_no_tracked_file_is_large():
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a git checkout, which says which files belong to the repository")
    sizes = {name: (ROOT / name).stat().st_size for name in listed.stdout.split("\0") if (ROOT / name).is_file()}
    assert {name: size for name, size in sizes.items() if size > LARGEST_FILE} == {}


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.stem)
def test_every_skip_says_what_it_needs(path):
    reasons = []
    for call in ast.walk(ast.parse(path.read_text())):
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(("skip", "skipif", "importorskip")):
            named = [one.value for one in call.keywords if one.arg == "reason"]
            reasons += named or (call.args if ast.unparse(call.func) == "pytest.skip" else [None])
    said = [ast.unparse(one).lstrip("f").strip("'\"") if one else "nothing" for one in reasons]
    assert [one for one in said if not one.startswith("needs ")] == []


def test_installed_version_is_the_one_in_pyproject():
    assert version("fedbayes") == PROJECT["version"]
