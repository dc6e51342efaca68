# Everything starts here: `make demo` and `make test` need only Python 3.11–3.13, git and make.
# The environment is .venv, made once from uv.lock by .ci/setup; later calls find it fresh and start at once.

SHELL := /bin/sh
.DEFAULT_GOAL := help
unexport PYTHONDONTWRITEBYTECODE
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHON

PIPELINES := $(patsubst %/pipeline.py,%,$(wildcard pipelines/*/pipeline.py))
CHECKED := penstock services pipelines
FRESH := .venv/penstock-setup
NOT_RUN := var/test/not-run

.PHONY: help
help: ## show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

.PHONY: setup
setup: $(FRESH) ## make or refresh .venv
	@:

$(FRESH): uv.lock pyproject.toml $(wildcard services/*/pyproject.toml) .ci/setup .ci/uv.txt
	@.ci/setup
	@touch $@

.PHONY: demo
demo: $(FRESH) ## replay 2013's flights through everything; DEMO="--speed max --limit 20000 --keep" passes options
	@penstock demo $(DEMO)

.PHONY: test
test: check ## checks, then every test; PYTEST="-k window" passes options
	@mkdir -p $(dir $(NOT_RUN)) && : > $(NOT_RUN)
	@PENSTOCK_NOT_RUN=$(NOT_RUN) python -m pytest -n 3 --dist loadfile $(PYTEST)
	@echo "make test: passed"
	@cat $(NOT_RUN)

.PHONY: check
check: $(FRESH) ## ruff, mypy --strict, schemas against their locks
	ruff check .
	ruff format --check .
	mypy --strict $(CHECKED)
	penstock schemas check $(PIPELINES)

.PHONY: bench
bench: $(FRESH) ## measure beside the bare copy, write bench/results/latest.json and the README's table
	@python -m bench $(BENCH)

SEED ?= 1
ROUNDS ?= 1

.PHONY: chaos
chaos: $(FRESH) ## harm a running pipeline and count what became of it; SEED=7 ROUNDS=10 SCENARIO="crash zombie"
	@python -m tests.chaos --seed $(SEED) --rounds $(ROUNDS) $(addprefix --scenario ,$(SCENARIO))

.PHONY: lock
lock: $(FRESH) ## resolve dependencies again, keeping what is pinned; LOCK="--upgrade-package NAME" moves one
	.bootstrap/bin/uv lock $(LOCK)
	python .ci/strip_lock.py uv.lock
	$(MAKE) setup

.PHONY: clean
clean: ## remove the environments, var/ and caches
	rm -rf .venv .bootstrap var dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
