# Everything a fresh clone needs is made here from python3 (3.11 or newer) alone: `make demo`, `make test`, `make help`.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Twice quiet: pip says only what went wrong. Not compiled: little of what is installed is ever imported.
# In a variable: a comma in a call would end its argument.
EXTRAS := dev,lm-eval,onnx,peft
INSTALL := $(BIN)/python -m pip install -qq --no-compile --no-input --disable-pip-version-check -c constraints.txt -e

.PHONY: help demo models test lint format types pytest clean

help: ## List what make can do
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1|/' | while IFS='|' read -r name what; do printf '  make %-8s %s\n' "$$name" "$$what"; done

demo: models ## Install, fetch two small models, and run examples/quickstart.yaml on this machine's CPU
	@$(BIN)/probekd run examples/quickstart.yaml

models: $(VENV)/.runtime ## Fetch the demo's teacher and student into models/
	@$(BIN)/python scripts/fetch_models.py

test: lint types pytest ## Check style and types, and run the tests

lint: $(VENV)/.dev ## Check style with ruff
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/.dev ## Put the code in ruff's format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(VENV)/.dev ## Check types with mypy
	@$(BIN)/mypy

pytest: $(VENV)/.dev ## Run the tests
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

clean: ## Remove the environment, the models and caches; runs/ is kept
	rm -rf $(VENV) models dist .mypy_cache .pytest_cache .ruff_cache
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment is stamped once it is whole, so an interrupted step is done again and a finished one is not.
$(VENV)/.created:
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) not found: probekd needs Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("probekd needs Python 3.11 or newer, and $(PYTHON) is %d.%d; name another: make PYTHON=python3.12" % sys.version_info[:2])'
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }
	@touch $@

$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/.created
	@$(call install,.[gguf],probekd and what it needs)

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.runtime
	@$(call install,.[$(EXTRAS)],what the tests need)

# $(call install,REQUIREMENT,DESCRIPTION): install in editable form, print the seconds, stamp the target.
define install
	SECONDS=0; echo "installing $(2) (about a minute the first time)"; \
	$(INSTALL) '$(1)' || { echo "installing failed, see above; is the package index reachable? Run make again to go on" >&2; exit 1; }; \
	touch $@; printf '%-58s %5d   s\n' "installed $(2)" $$SECONDS
endef
