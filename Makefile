# `make demo` and `make test` set up what they need in .venv and run; nothing else has to be installed before.
PYTHON ?= python3
VENV ?= .venv
# Installed first and pinned, so that a later range cannot pull in another build. Any torch>=2.11 will do.
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin

.PHONY: demo test check clean

demo: $(VENV)/.installed
	$(BIN)/potstill demo --output_dir demo --overwrite_output_dir

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2

check: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/typos

clean:
	rm -rf $(VENV) demo

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@
