#!/usr/bin/env bash
# Runs a configuration of fedbayes on Flower's Simulation Runtime, e.g. flower_app/run.sh 'method=fedvpt rounds=3'.
# FEDBAYES_PYTHON names the Python that fedbayes is installed for; otherwise .venv beside this folder, or the one on PATH.
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${FEDBAYES_PYTHON:-$here/../.venv/bin/python}"
[ -n "${FEDBAYES_PYTHON:-}" ] || [ -x "$python" ] || python=python3
exec "$python" "$here/launch.py" "$@"
