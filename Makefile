# `make demo` and `make test` set up what they need in .venv and run; nothing else has to be installed before.
PYTHON ?= python3
VENV ?= .venv
# Installed first and pinned, so that a later range cannot pull in another build. Any torch>=2.11 will do.
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
OLDEST ?= .venv-oldest
# What `make reproduce` trains and measures on: English Wikipedia's better articles, GLUE, IMDb and SQuAD from the hub.
# Files of your own: make reproduce REPRODUCE="--text 'text/*.jsonl.zst' --task_data glue/ --imdb data/ --squad squad/"
REPRODUCE ?= --text Salesforce/wikitext --prepare_options dataset_config_name=wikitext-103-raw-v1

.PHONY: demo test test-long test-faults test-oldest check docs prose options errors reproduce web clean

demo: $(VENV)/.installed
	$(BIN)/potstill demo --output_dir demo --overwrite_output_dir

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2

# Everything, the slow tests too: by hand, before a release.
test-long: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 -m ""

# The long part of tests/faults: 100 kills at random moments, and others. FAULT_SEED=N repeats a run.
test-faults: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m faults -s -n 0 tests/faults

# The core of the suite with the lowest versions that pyproject.toml allows, in an environment of its own.
test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest -n 2 tests/training tests/student tests/corpus tests/test_cli.py

reproduce: $(VENV)/.installed
	$(BIN)/python -m reproduce $(REPRODUCE)

# After a change of options: the table that help and usage errors are answered from.
options: $(VENV)/.installed-dev
	$(BIN)/python -m potstill.option_table

# After a change of an error message: docs/reference/errors.md, the page of all messages.
errors: $(VENV)/.installed-dev
	$(BIN)/python -m potstill.error_page

check: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/typos

# The site, from docs/, mkdocs.yml and the docstrings. A warning is an error. Open site/index.html.
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# Hints on the wording of the pages. They are read and not obeyed: code is looked at too.
prose: $(VENV)/.installed-dev
	-$(BIN)/proselint --config .proselintrc.json --output-format compact check README.md docs

# The page that `potstill serve` brings to the browser, built anew from web/ into the package. The only target that needs Node.
web:
	cd web && npm ci && npm run build
	$(PYTHON) web/pack.py

clean:
	rm -rf $(VENV) $(OLDEST) demo site

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

$(OLDEST)/.installed: pyproject.toml requirements-oldest.txt
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements-oldest.txt --editable ".[test]"
	touch $@
