# From a bare machine with Python 3.11 or newer and make:  make demo  |  make test
# Another interpreter:  make setup PYTHON=python3.12       More words for a command:  make demo ARGS="rounds=5 seed=1"

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint docs clean clean-all moved

# What a user's shell may carry in must not decide where packages land or which ones are imported.
unexport VIRTUAL_ENV CONDA_PREFIX PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV UV_SYSTEM_PYTHON
# Without bytecode every process compiles torch, flwr and timm anew: 12 s instead of 5.
unexport PYTHONDONTWRITEBYTECODE
# Torch is large: slow lines need more than the usual half minute.
export UV_HTTP_TIMEOUT ?= 300

# An environment holds its own path (and the stamp remembers it), so one that was moved or copied is made anew.
MOVED :=
ifneq ($(wildcard $(STAMP)),)
ifneq "$(shell cat $(STAMP))" "$(CURDIR)"
MOVED := moved
endif
endif

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:[^#]*## /\t/' | while IFS="$$(printf '\t')" read -r name text; do \
	    printf '  make %-10s %s\n' "$$name" "$$text"; done

setup: $(STAMP)  ## create .venv and install everything at the versions of requirements.lock

demo: setup  ## run fedbayes with its defaults, or with ARGS="key=value ..."
	$(BIN)/fedbayes $(ARGS)

test: lint  ## lint, types, import rules, then the tests (ARGS go to pytest)
	$(BIN)/python -m pytest -n 2 --durations=15 $(ARGS)

lint: setup  ## ruff, mypy and the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup  ## the documentation's pages in site/, built strictly; fetches the extra [docs]
	if [ -x $(BIN)/uv ]; then $(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[docs]'; \
	else $(BIN)/python -m pip install --quiet -e '.[docs]'; fi
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict  # the name of a notice about mkdocs' successor, no fault

clean:  ## remove caches and build products; keeps .venv and runs
	rm -rf build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find fedbayes strategies clients flower_app tests experiments -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

clean-all: clean  ## remove .venv as well
	rm -rf $(VENV)

moved:
	@echo "$(VENV) belongs to $$(cat $(STAMP)); making a new one."

# Debian's python3 comes without ensurepip: then an environment without pip, filled from outside by uv or by the system's pip.
$(BIN)/python: $(MOVED)
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "fedbayes needs Python 3.11 or newer, but '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1 || true)." >&2; \
	    echo "Name another one, for example: make setup PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -m venv --clear $(VENV) || { \
	    echo "python -m venv failed; trying without ensurepip." >&2; \
	    rm -rf $(VENV); "$(PYTHON)" -m venv --without-pip $(VENV) || "$(PYTHON)" -m virtualenv $(VENV) || { \
	    rm -rf $(VENV); echo "No environment could be created: install Python's venv module (Debian: python3-venv)." >&2; exit 1; }; }

$(STAMP): pyproject.toml requirements.lock $(MOVED) | $(BIN)/python
	@rm -f $(STAMP)
	@if $(BIN)/python -m pip --version >/dev/null 2>&1; then pip="$(BIN)/python -m pip"; \
	elif "$(PYTHON)" -m pip --version >/dev/null 2>&1; then pip="$(PYTHON) -m pip --python $(BIN)/python"; \
	else pip=""; fi; \
	if [ ! -x $(BIN)/uv ] && [ -n "$$pip" ]; then $$pip install --quiet uv || echo "uv is not to be had; going on with pip." >&2; fi; \
	uv="$$( [ -x $(BIN)/uv ] && echo $(BIN)/uv || command -v uv || true)"; \
	fill() { "$$@" -r requirements.lock && "$$@" --no-deps -e .; }; \
	if [ -n "$$uv" ] && fill "$$uv" pip install --python $(BIN)/python; then :; \
	elif [ -n "$$pip" ]; then fill $$pip install; \
	else echo "Neither pip nor uv works here: install Python's venv module (Debian: python3-venv) or uv." >&2; exit 1; fi
	@printf '%s\n' "$(CURDIR)" > $(STAMP)
