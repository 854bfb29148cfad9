# Two main commands: `make repro` and `make test`. Both install the environment first; a second call installs nothing.
# `make test` is for everyday use; `make test-all` is what continuous integration runs.
# The first Python from 3.11 on that runs; to choose one: make repro PYTHON=/path/to/python3.12
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3 python; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$name && break; done)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: repro methods test test-all lint seeds bench verify help
.DEFAULT_GOAL := help

help:                ## List the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

repro: $(READY)      ## Install what is missing, then run the pipeline: dvc repro
	@echo "==> dvc repro: prepare, sft, dpo, generate, score (DVC skips stages that are up to date)"
	@PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/closing_line.py

methods: $(READY)    ## Train further methods and compare all models in a league: dvc repro pipelines/dvc.yaml
	@PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro pipelines/dvc.yaml

# Two workers. The tests of a module differ in length by a factor of 100, so each worker begins with half of them, in order, and
# the one that finishes first takes over tests from the other (worksteal).
PYTEST = PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test: lint           ## Check the style and run the quick tests (at most 5 minutes on two quiet cores)
	@echo "==> pytest, without the slow tests"
	@$(PYTEST) -m "not slow" --hypothesis-profile quick

test-all: lint       ## Check the style and run all tests, with coverage (at most 25 minutes on two quiet cores)
	@echo "==> pytest, all tests"
	@$(PYTEST) --cov --cov-report term --cov-fail-under 90

lint: $(READY)       ## Check style, format and types: ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

verify: $(READY)     ## Run the whole pipeline afresh in a temporary clone; compare every output with dvc.lock (takes as long as repro)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/verify.py

SEEDS := 18 19 20 21

seeds: $(READY)      ## Repeat the run with four other seeds (a quarter of an hour), and collect all five in docs/seeds.csv and docs/results.md
	@for seed in $(SEEDS); do PATH="$(CURDIR)/$(BIN):$$PATH"; \
		dvc exp remove --quiet seed-$$seed 2>/dev/null; dvc exp run --queue --name seed-$$seed -S seed=$$seed; done
	@PATH="$(CURDIR)/$(BIN):$$PATH" dvc exp run --run-all
	@$(BIN)/python tools/seeds.py $(SEEDS)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/render_readme.py

bench: $(READY)      ## Measure ours against stock trl on this machine (under 20 minutes on two quiet cores; run nothing else meanwhile)
	@PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH=src $(BIN)/python benchmarks/bench.py

# The stamp is newer than requirements.txt after an installation; pip runs again only when requirements.txt changes.
$(READY): requirements.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or later found (transformers 5 needs it). Install one, or name it: make repro PYTHON=/path/to/python3.11"; exit 1; }
	@echo "==> creating .venv with $(PYTHON)"
	@"$(PYTHON)" -m venv .venv
	@echo "==> installing requirements.txt (once; takes some minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	@touch $(READY)
