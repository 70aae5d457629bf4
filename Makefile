PYTHON   ?= python3
VENV     ?= .venv
DEMO     ?= demo
SETTINGS ?= segwatch.toml
TARGET   ?= dev
AS_OF    ?=
SEGMENTS ?= 27
DAYS     ?= 1000
SEED     ?= 7

.DEFAULT_GOAL := help
SHELL := /bin/sh
BIN := $(abspath $(VENV))/bin
# Compilers and browsers leave files in TMPDIR; here they go with the environment.
export TMPDIR := $(abspath $(VENV))/tmp
export PIP_DISABLE_PIP_VERSION_CHECK := 1
SEGWATCH := $(BIN)/segwatch --settings $(SETTINGS) --target $(TARGET)
AS_OF_OPTION := $(if $(AS_OF),--as-of $(AS_OF))

.PHONY: help demo test check format create data train infer run report destroy clean

help: ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12
	@echo; echo "Variables: VENV DEMO SETTINGS TARGET AS_OF SEGMENTS DAYS SEED"

$(VENV)/installed-base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("segwatch needs Python 3.11 to 3.13, " + sys.executable + " is " + sys.version.split()[0] + ": set PYTHON=") if not (3, 11) <= sys.version_info[:2] <= (3, 13) else 0'
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(TMPDIR)
	$(BIN)/pip install --quiet --no-cache-dir -c constraints.txt -e .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed-base
	$(BIN)/pip install --quiet --no-cache-dir -c constraints.txt -e '.[test]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed-test
	$(BIN)/pip install --quiet --no-cache-dir -c constraints.txt -e '.[dev]'
	@touch $@

# An environment of their own: bqemulator needs another duckdb. Its extensions are found in its home directory.
$(VENV)/installed-emulators: tests/emulators.txt | $(VENV)/installed-base
	$(PYTHON) -m venv $(VENV)/emulators
	$(VENV)/emulators/bin/pip install --quiet --no-cache-dir -r tests/emulators.txt
	HOME=$(abspath $(VENV))/emulators $(VENV)/emulators/bin/python -c 'from duckdb_extensions import import_extension as i; i("spatial"); i("icu")'
	@touch $@

demo: $(VENV)/installed-base ## Generate data, train, score 60 days, write the report
	@$(BIN)/python examples/demo.py $(DEMO)

test: $(VENV)/installed-test $(VENV)/installed-emulators ## Run the tests
	SEGWATCH_EMULATORS=$(abspath $(VENV))/emulators $(BIN)/python -m pytest -n 2

check: $(VENV)/installed-dev ## Lint, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/installed-dev ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(SETTINGS): | $(VENV)/installed-base
	$(BIN)/segwatch --settings $@ init

create: $(VENV)/installed-base | $(SETTINGS) ## Make the tables and the registry
	$(SEGWATCH) create

data: create ## Insert the generated metric
	$(SEGWATCH) data insert --segments $(SEGMENTS) --days $(DAYS) --seed $(SEED)

train: $(VENV)/installed-base | $(SETTINGS) ## Train on the periods before AS_OF (today)
	$(SEGWATCH) train $(AS_OF_OPTION)

infer: $(VENV)/installed-base | $(SETTINGS) ## Score the last complete period before AS_OF (today)
	$(SEGWATCH) infer $(AS_OF_OPTION)

run: $(VENV)/installed-base | $(SETTINGS) ## The daily job: train if due, then score
	$(SEGWATCH) run $(AS_OF_OPTION)

report: $(VENV)/installed-base | $(SETTINGS) ## Write segwatch-report.html
	$(SEGWATCH) report

destroy: $(VENV)/installed-base | $(SETTINGS) ## Remove what segwatch made, after asking
	$(SEGWATCH) destroy

clean: ## Remove the environment and the demo
	rm -rf $(VENV) $(DEMO)
