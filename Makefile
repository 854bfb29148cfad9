# Two commands: `make repro` and `make test`. Both set the environment up first; a second call installs nothing.
PYTHON ?= $(firstword $(foreach v,python3.11 python3.12 python3.13 python3 python,$(shell command -v $(v) 2>/dev/null)))
BIN := .venv/bin
READY := .venv/.ready

.PHONY: repro test lint help
.DEFAULT_GOAL := help

help:                ## Say what can be made
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

repro: $(READY)      ## Install what is missing, then run the pipeline: dvc repro
	@echo "==> dvc repro: prepare, sft, dpo, generate, score (what is up to date is skipped)"
	@PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro

test: $(READY)       ## Install what is missing, then check the style and run all tests
	@echo "==> ruff"
	@$(BIN)/ruff check .
	@echo "==> pytest"
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest --cov --cov-report=term --cov-fail-under=90

lint: $(READY)       ## Check the style
	@$(BIN)/ruff check .

# The stamp names the requirements that were installed; pip runs again only when they change.
$(READY): requirements.txt
	@test -n "$(PYTHON)" || { echo "No Python found. Install Python 3.11 or later, or: make repro PYTHON=/path/to/python3.11"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11, which transformers 5 needs. Try: make repro PYTHON=/path/to/python3.11"; exit 1; }
	@echo "==> creating .venv with $(PYTHON)"
	@"$(PYTHON)" -m venv .venv
	@echo "==> installing requirements.txt (once; some minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	@touch $(READY)
