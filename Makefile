# The two commands are `make demo` and `make test`; `make` alone lists all of them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
# One stamp a build of PyTorch that was asked for: `TORCH=cpu make setup` works after a plain one too.
READY := $(VENV)/.ready$(addprefix -,$(TORCH))
UV := 0.11.33
RIGHT_PYTHON := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c '$(RIGHT_PYTHON)' 2>/dev/null && { echo $$python; break; }; done)

# uv does not read pip's variable for places with wheels. It takes addresses and directories, with commas between them, and
# ends where a directory is missing.
GIVEN := $(PIP_FIND_LINKS:file://%=%)
PLACES := $(strip $(foreach place,$(GIVEN),$(if $(findstring ://,$(place))$(wildcard $(place)/.),$(place))))
ifdef PIP_FIND_LINKS
empty :=
comma := ,
export UV_FIND_LINKS ?= $(subst $(empty) $(empty),$(comma),$(PLACES))
endif

# A dozen processes import the same packages: without bytecode each would compile them again, at every start.
export PYTHONDONTWRITEBYTECODE :=

.NOTPARALLEL:
.PHONY: help setup demo test test-all test-more machines phone unit integration lint browser lock up down clean

help: ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(READY) ## Make .venv from requirements.lock; quick when nothing has changed. TORCH=cpu, TORCH=plain: which PyTorch.

$(READY): requirements.lock pyproject.toml
	@[[ -n "$(PYTHON)" ]] || { echo "No Python 3.11, 3.12 or 3.13 was found. Install one, or name it: make setup PYTHON=/path/to/python3"; exit 2; }
	@[[ -x $(BIN)/python ]] || $(PYTHON) -m venv $(VENV) || { \
		rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment (Debian, Ubuntu: apt-get install python3-venv)."; exit 2; }
	@$(BIN)/python -c '$(RIGHT_PYTHON)' || { echo "$(VENV) has another Python than 3.11 to 3.13: remove it and try again."; exit 2; }
	@$(foreach place,$(filter-out $(PLACES),$(GIVEN)),echo "PIP_FIND_LINKS: $(place) is no directory and is left out";)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV)
	infra/setup.sh $(VENV)
	@touch $@

demo: setup ## From nothing to a served proxy, through Airflow. ARGS="--recipe digits" changes what runs.
	$(BIN)/flyweight demo $(ARGS)

up: setup ## Start MLflow, Triton and Airflow on loopback.
	$(BIN)/flyweight up

down: ## Stop everything that was started; leave no process.
	@if [[ -x $(BIN)/flyweight ]]; then $(BIN)/flyweight down; else echo "nothing was running"; fi

# One process more than most small machines have cores: tests of servers wait a lot.
test: setup browser ## Everything you need to trust the install: every kind of test and of fault, and one end-to-end run.
	$(BIN)/pytest -n 3 $(ARGS)

test-all: setup browser phone ## Every case of every test, also on bare machines (root and debootstrap).
	$(BIN)/pytest -n 3 -m "not benchmark and not machine" $(ARGS)
	$(BIN)/pytest -n 0 -m machine

test-more: setup browser phone ## The further cases that `make test` leaves to `make test-all`.
	$(BIN)/pytest -n 3 -m "extra and not benchmark and not machine" $(ARGS)

machines: setup ## README's two commands on bare Debians (root and debootstrap).
	$(BIN)/pytest -n 0 -m machine

phone: setup ## Install what the export for phones needs, at versions that change nothing else.
	$(BIN)/uv pip install --python $(BIN)/python --quiet --constraint requirements.lock -r pyproject.toml --extra mobile

lint: setup ## For developers: ruff and mypy.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: setup ## The tests that need no server.
	$(BIN)/pytest -m "not integration" $(ARGS)

integration: setup browser ## The tests with real servers and a browser.
	$(BIN)/pytest -m integration $(ARGS)

browser: ## Install chromium where it is missing and can be installed; the browser test needs it.
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	root=; [[ $$EUID == 0 ]] || root="sudo -n"; \
	$$root apt-get update -qq && $$root apt-get install -y -qq --no-install-recommends chromium >/dev/null \
	|| echo "chromium cannot be installed from here, and the browser test will be skipped. To run it: sudo apt-get install chromium"

lock: setup ## Write requirements.lock from pyproject.toml. ARGS=--upgrade takes newer versions of everything.
	sh infra/lock.sh $(ARGS)

clean: down ## Stop everything; remove stores, logs, served models and caches. .venv and data/ stay.
	rm -rf .flyweight .triton_repo .mypy_cache .ruff_cache .pytest_cache build
	find triton_repo -mindepth 1 -maxdepth 1 ! -name README.md ! -name .gitignore -exec rm -rf {} +
