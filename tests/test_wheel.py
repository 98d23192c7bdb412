"""The wheel in an environment of its own: its commands work from any folder, with their configurations and weights.

The environment has no packages but the wheel; a .pth file shows it those of the environment that runs the tests, since
installing torch anew would take minutes. What `pyproject.toml` requires is checked by `make setup`.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sysconfig
import zipfile

import pytest
from processes import COMPILED

from fedbayes.config.compose import CONF
from fedbayes.config.instantiate import require_own
from fedbayes.errors import ConfigError

ROOT = CONF.parent
UV = shutil.which("uv")
RUN = ["experiment=smoke", "method=fedavg_head", "rounds=1"]


def call(*words, cwd, **environment):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    env |= {**COMPILED, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([str(word) for word in words], cwd=cwd, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of the environment's commands, and the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("fedbayes", "strategies", "clients", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    built = call(UV, "build", "--out-dir", folder / "dist", source, cwd=folder)
    assert built.returncode == 0, built.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    assert len(list((folder / "dist").glob("*.tar.gz"))) == 1
    made = call(UV, "venv", "--python", sysconfig.get_path("scripts") + "/python", folder / "env", cwd=folder)
    assert made.returncode == 0, made.stderr
    python = folder / "env" / "bin" / "python"
    put = call(UV, "pip", "install", "--no-deps", "--python", python, wheel, cwd=folder)
    assert put.returncode == 0, put.stderr
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return python.parent, wheel


@pytest.mark.slow
@pytest.mark.skipif(UV is None, reason="needs uv to build the wheel")
def test_the_wheel_has_configurations_weights_and_types(installed):
    names = set(zipfile.ZipFile(installed[1]).namelist())
    assert {f"{name}/py.typed" for name in ("fedbayes", "strategies", "clients")} <= names
    assert "fedbayes/assets/vit_letters32.safetensors" in names
    templates = (ROOT / "fedbayes" / "report" / "templates").iterdir()
    assert {f"fedbayes/report/templates/{path.name}" for path in templates} <= names
    assert {str(path.relative_to(ROOT)) for path in CONF.rglob("*.yaml")} <= names
    assert not [name for name in names if name.startswith(("tests/", "experiments/", "runs/"))]


@pytest.mark.slow
@pytest.mark.skipif(UV is None, reason="needs uv to build the wheel")
def test_its_commands_run_from_another_folder_even_one_with_such_names(installed, tmp_path):
    commands, _ = installed
    for name in ("clients", "strategies", "conf"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    done = call(commands / "fedbayes", *RUN, "run_dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rounds"] == 1
    info = call(commands / "fedbayes-info", cwd=tmp_path)
    assert info.returncode == 0, info.stderr
    assert f"{commands.parent}" in info.stdout
    assert "pfedbayespt" in info.stdout
    report = call(commands / "fedbayes-report", "run", cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    assert "fedavg_head" in report.stdout
    # python -m puts this folder first: then it says so.
    other = call(commands / "python", "-m", "fedbayes.run", *RUN, "run_dir=other", cwd=tmp_path)
    assert other.returncode == 2
    assert f"ConfigError: the package strategies is taken from {tmp_path}/strategies/__init__.py" in other.stderr
    assert "Traceback" not in other.stderr
    assert not (tmp_path / "other").exists()


@pytest.fixture
def _asked_anew():
    require_own.cache_clear()
    yield
    require_own.cache_clear()


@pytest.mark.usefixtures("_asked_anew")
def test_our_own_packages_are_taken():
    require_own()


@pytest.mark.usefixtures("_asked_anew")
def test_packages_of_the_same_name_are_refused_before_they_run(tmp_path, monkeypatch):
    (tmp_path / "clients.py").write_text("raise SystemExit('it ran')\n")

    def found(name):
        if name == "clients":
            return importlib.util.spec_from_file_location(name, tmp_path / "clients.py")
        return importlib.util.find_spec(name)

    monkeypatch.setattr("fedbayes.config.instantiate.find_spec", found)
    with pytest.raises(ConfigError, match=r"clients is taken from .*clients\.py and not from .*clients: it is first"):
        require_own()


def test_every_package_says_that_it_is_typed():
    assert all((ROOT / name / "py.typed").is_file() for name in ("fedbayes", "strategies", "clients"))
