# Two commands set up everything on a fresh machine with Python 3.11: `make run` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: run test check bench clean
.DEFAULT_GOAL := run

$(BIN)/memroof: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(BIN)/memroof $@

run: $(BIN)/memroof  ## Answer three real questions, one after another.
	@$(BIN)/memroof run training/gpt3-175b-64xa100
	@$(BIN)/memroof run serving/llama3.1-70b-8xh100
	@$(BIN)/memroof run offload/opt-30b-t4

test: $(VENV)/.dev  ## Run the tests with coverage.
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term tests

check: $(VENV)/.dev  ## Lint, types and the one-way rule.
	$(BIN)/ruff check simulator tests
	$(BIN)/ruff format --check simulator tests
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev  ## Speed and memory.
	$(BIN)/python -m pytest tests/bench -p no:cacheprovider -o addopts= --benchmark-only

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage*
