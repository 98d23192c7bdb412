"""A headless Chromium for tests, installed where it is missing; where none can be had, its tests are skipped."""

import importlib.util
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

PACKAGES = ("playwright", "axe-playwright-python")
NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 280


def _runs(*command):
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _packages():
    """Makes the packages importable, from a folder of their own: the project does not depend on them."""
    folder = Path(os.environ.get("FEDBAYES_BROWSER", Path.home() / ".cache" / "fedbayes-browser"))
    sys.path.append(str(folder))
    if not all(importlib.util.find_spec(name.replace("-", "_")) for name in PACKAGES):
        uv = shutil.which("uv")
        pip = [uv, "pip", "install", "--python", sys.executable] if uv else [sys.executable, "-m", "pip", "install"]
        if not _runs(*pip, "--target", str(folder), *PACKAGES):
            pytest.skip(f"needs {', '.join(PACKAGES)}, which cannot be installed here")
        importlib.invalidate_caches()


def _executable():
    """A browser that is there, the one of the system's packages, or None for playwright's own."""
    if found := next(filter(None, map(shutil.which, NAMES)), None):
        return found
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    own = [sys.executable, "-m", "playwright", "install", "chromium"]
    if subprocess.run(own, env=environment, capture_output=True, timeout=SECONDS, check=False).returncode == 0:
        return None
    apt = shutil.which("apt-get")
    if apt and os.geteuid() == 0 and _runs(apt, "update") and _runs(apt, "install", "-y", "chromium"):
        return shutil.which("chromium")
    return pytest.skip("needs Chromium, which cannot be installed here")


@contextmanager
def browser():
    """A headless Chromium of playwright's."""
    _packages()
    executable = _executable()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tools:
        opened = tools.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        try:
            yield opened
        finally:
            opened.close()
