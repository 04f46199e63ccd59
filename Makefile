# What can be done here. `make` lists it; every target but `clean` sets up what it needs first.
# A target that takes more arguments takes them as ARGS="…".

SHELL := bash
.DEFAULT_GOAL := help

VENV ?= .venv
# The first interpreter here that is new enough.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# Where training runs: one of launch/*.yaml.
LAUNCH ?= launch/cpu2.yaml

BIN := $(VENV)/bin
BASE := $(VENV)/.installed-base
DEV := $(VENV)/.installed-dev

# DeepSpeed looks for ninja on the PATH.
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: docs/reproduction.md help setup autoencode generate reproduce test test-slow check format bench train-nano report clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z\/.-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# --- set-up: two stamps, so that using the model does not wait for the tools of its developers ---

# A dot for each package, a line for each big one; pip's own account is in pip.log.
PIP_PROGRESS = awk '/^ *Downloading .*\([0-9][0-9]+\.[0-9] [MG]B\)/ {split($$2, file, "-"); \
		printf "\n  %s %s %s%s ", file[1], file[2], $$3, $$4} \
	/^(Collecting|Requirement already)/ {printf "."} \
	/^Installing collected/ {printf "\n  unpacking %d packages\n", NF - 3} {fflush()}'

define install
	@test -n "$(PYTHON)" || { echo "crocodil wants Python 3.11 or newer; name yours with PYTHON=…" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@printf 'Installing $(2) into $(VENV) ' >&2
	@set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off \
		-c constraints.txt -e '$(1)' 2>&1 | tee $(VENV)/pip.log | $(PIP_PROGRESS) >&2 \
		|| { echo >&2; tail -n 25 $(VENV)/pip.log >&2; exit 1; }
	@touch $@
endef

$(BASE): pyproject.toml constraints.txt
	$(call install,.,crocodil and what it runs on (the first time, minutes))

$(DEV): $(BASE)
	$(call install,.[dev],the tools for testing and training)

setup: $(DEV) ## create .venv with everything, at pinned versions

# --- use ---

autoencode: $(BASE) ## programs to registers and back, a report in outputs/; FILE=path.py for your own
	@$(BIN)/crocodil autoencode $(FILE) --nfe 4,8,32 --report outputs/autoencode $(ARGS)

generate: $(BASE) ## new programs out of noise, a report in outputs/; ARGS="--method mdm", ARGS="--prompt import"
	@$(BIN)/crocodil generate -n 4 --report outputs/generate $(ARGS)

report: $(BASE) ## measure the bundled model on held-out programs: the paper's Table 1, in outputs/
	@$(BIN)/crocodil evaluate --report outputs/evaluation $(ARGS)

reproduce: $(BASE) ## every figure of the paper on the bundled model, a page in outputs/; FIGURES="table1 fig4", ARGS="--model PATH"
	@$(BIN)/crocodil reproduce $(or $(FIGURES),all) $(ARGS)

docs/reproduction.md: $(BASE) ## write docs/reproduction.md anew, from the bundled model
	@$(BIN)/crocodil reproduce all --preset nano --markdown $@

bench: $(DEV) ## time and memory against the plain way, as ratios; ARGS="--official PATH", ARGS=--quick
	@$(BIN)/python recipes/benchmarks/run.py $(ARGS)

train-nano: $(BASE) ## train the bundled model from nothing, three hours; LAUNCH=launch/gpu.yaml for a GPU
	$(BIN)/accelerate launch --config_file $(LAUNCH) recipes/train_base.py --config recipes/configs/nano-base.yaml
	@for part in nano nano-grow nano-long; do $(BIN)/accelerate launch --config_file $(LAUNCH) \
		recipes/train_demasker.py --config recipes/configs/$$part.yaml || exit 1; done

# --- develop ---

test: $(DEV) ## set up and run the whole test suite
	@$(BIN)/python -m pytest -q $(ARGS)

test-slow: $(DEV) ## the tests that take minutes
	@$(BIN)/python -m pytest -q -m slow $(ARGS)

check: $(DEV) ## formatting, lint, import contracts, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(DEV) ## rewrite the files as `make check` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove reports, builds and caches; .venv/ and runs/ stay
	rm -rf outputs build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
