# What a person and CI call. Every target does its own set-up; `make demo` and `make test` work on a fresh clone.
#
#   make demo        personalize the sample folder, start a node, write one answer
#   make test        every test, real processes included, with branch coverage
#   make test-quick  the fast tests
#   make lint        format, style, types, import boundaries, generated code, links
#   make bench       the measurements that docs/ reports (ARGS="...")
#   make protos      generate ssd_protos again from protos/ssd/v1/*.proto
#   make setup       .venv with everything in it
#
# Settings: PYTHON (interpreter for .venv), TORCH (what to install as torch), ARGS (more arguments for a target).

.DEFAULT_GOAL := help

BIN := .venv/bin
READY := .venv/.ssd2-ready

# Least branch coverage in percent that `make test` accepts.
COVERAGE_MIN := 85
# Test processes at once.
WORKERS ?= 2

export PYTHON TORCH
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
PACKAGES := ssd_kernels ssd_diffusion ssd_client ssd_cloud ssd_bench

.PHONY: help setup demo test test-quick lint format bench protos clean

help:
	@sed -n '2,/^$$/s/^# \{0,1\}//p' Makefile

setup: $(READY)

$(READY): pyproject.toml constraints.txt .ci/setup
	@.ci/setup
	@touch $(READY)

demo: $(READY)
	@$(BIN)/python examples/demo.py $(ARGS)

test: $(READY)
	@$(PYTEST) -n $(WORKERS) --dist loadfile --cov --cov-branch --cov-report=term:skip-covered \
		--cov-fail-under=$(COVERAGE_MIN) $(ARGS)

test-quick: $(READY)
	@$(PYTEST) -m 'not slow' $(ARGS)

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy $(addprefix -p ,$(PACKAGES))
	@$(BIN)/mypy examples/demo.py examples/office_documents.py
	@$(BIN)/python -m ssd_protos.generate --check
	@$(PYTEST) tests/house -m 'not slow'

format: $(READY)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(READY)
	@$(BIN)/python -m ssd_bench $(ARGS)

protos: $(READY)
	@$(BIN)/python -m ssd_protos.generate

clean:
	@rm -rf .demo .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis htmlcov
