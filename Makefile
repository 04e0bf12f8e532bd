# What one does in a checkout. `make` alone lists it.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export WANDB_MODE ?= offline

.DEFAULT_GOAL := help
.PHONY: help install test test-fast test-slow coverage lint format options docs bench lowest release

help:  ## List these targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install:  ## Make .venv with the pinned versions, the package and its development tools.
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	$(BIN)/pre-commit install

test:  ## The default suite, as the README's second command runs it.
	$(BIN)/python -m pytest

test-fast:  ## What needs no model: decisions, metrics, splits, samplers, the rule of imports. A minute or two.
	$(BIN)/python -m pytest tests/stopping tests/metrics tests/data tests/runs tests/test_imports.py

test-slow:  ## End-to-end repeats: every family's fit, notebooks, the documentation's commands.
	$(BIN)/python -m pytest -m slow

coverage:  ## The default suite with the share of lines and branches that it runs, and where it does not.
	$(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered --cov-report=html

lint:  ## Style, types, spelling.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

format:  ## Mend what ruff can mend.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

options:  ## Write the list of options that help, completion and "did you mean" read, after options have changed.
	$(BIN)/python -m vidlit.commands.options.option_list

docs:  ## Build the pages into site/; a broken link or anchor is an error.
	$(BIN)/mkdocs build --strict

bench:  ## Measure the stop on simulated and on real runs; under a minute. Other figures: benchmarks/.
	$(BIN)/python -m benchmarks.stopping --quick --out build/stopping

lowest:  ## Write constraints-lowest.txt after a bound in pyproject.toml has changed (needs uv).
	(sed -n '/^#/p' constraints-lowest.txt; uv pip compile -q --resolution lowest-direct --python-version 3.11 \
		--no-annotate --no-header pyproject.toml | grep -vE '^(nvidia-|cuda-|triton)') > constraints-lowest.new
	mv constraints-lowest.new constraints-lowest.txt

release:  ## Build the source archive and the wheel into dist/; CONTRIBUTING.md says what comes before and after.
	rm -rf dist
	$(BIN)/python -m build --outdir dist
