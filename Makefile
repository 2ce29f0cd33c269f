# Needs make and python3 (3.11 or newer); uses uv where it is installed, which is quicker.
.DEFAULT_GOAL := help
SHELL := /bin/sh

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
BENCH_VENV ?= .bench-venv
USE_UV := command -v uv >/dev/null 2>&1
# A process for each core, at most four; a process that is done takes over from the others.
PYTEST_FLAGS ?= --numprocesses auto --maxprocesses 4 --dist worksteal
PIP_FLAGS := -qq --disable-pip-version-check

.PHONY: help demo test check chaos fmt reference bench bench-deps node-deps lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.ready ## Bill a small real customer base from usage to verified webhooks
	@$(PY) worker.py demo

test: $(VENV)/.ready ## Run the tests, on SQLite and on a throw-away PostgreSQL
	@$(PY) -m pytest $(PYTEST_FLAGS)

check: $(VENV)/.ready ## Run all that CI runs: format, lint, types, layers, tests
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy --strict src
	$(VENV)/bin/lint-imports
	$(PY) -m pytest $(PYTEST_FLAGS)

chaos: $(VENV)/.ready ## Kill, pause and stop workers and databases for minutes (make chaos ARGS="--minutes 10")
	@$(PY) -m tests.chaos.run $(ARGS)

fmt: $(VENV)/.ready ## Format the code and apply the safe lint fixes
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .

reference: $(VENV)/.ready ## Write docs/reference anew from the code
	@$(PY) -m docs.write_reference

bench: $(VENV)/.ready ## Run every benchmark (make bench ARGS=--quick for the short form)
	@for bench in bench/[!_]*.py; do echo "== $$bench"; $(PY) "$$bench" $(ARGS) || exit 1; done

bench-deps: $(VENV)/.ready ## Install the peers that benchmarks compare with, in an environment of their own
	@if ! $(BENCH_VENV)/bin/python -c '' >/dev/null 2>&1; then $(PY) -m venv $(BENCH_VENV); fi
	@$(BENCH_VENV)/bin/python -m pip install $(PIP_FLAGS) -r bench/requirements.txt \
		-r bench/requirements-svc-infra.txt
	@$(BENCH_VENV)/bin/python -m pip install $(PIP_FLAGS) --no-deps svc-infra==1.22.2

node-deps: $(VENV)/.ready ## Install the npm verifiers that some webhook tests use (needs node and npm)
	@mkdir -p $(VENV)/webhook-verifiers && cp tests/foreign/package*.json $(VENV)/webhook-verifiers/
	@npm ci --prefix $(VENV)/webhook-verifiers --ignore-scripts --no-audit --no-fund

lock: ## Compile requirements.lock anew (needs uv)
	uv pip compile pyproject.toml --universal --generate-hashes --no-header --no-emit-index-url \
		--all-extras -q -o requirements.lock

clean: ## Remove the environments and caches
	rm -rf $(VENV) $(BENCH_VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

# One environment for everything. It is updated in place when the lock changes, and made anew only
# when its interpreter no longer starts. hatchling and editables are pinned in the lock, so the
# editable install needs no build environment and no second download.
$(VENV)/.ready: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed: name one with 'make PYTHON=python3.12 ...'." >&2; exit 1; }
	@if ! $(PY) -c '' >/dev/null 2>&1; then \
		echo "Making the environment in $(VENV) (once) ..." >&2; \
		if $(USE_UV); then uv venv -q --clear --python "$(PYTHON)" $(VENV); \
		elif $(PYTHON) -c 'import ensurepip, venv' >/dev/null 2>&1; then $(PYTHON) -m venv --clear $(VENV); \
		else echo "$(PYTHON) cannot make a virtual environment: install python3-venv" \
			"(Debian, Ubuntu: apt-get install python3-venv) or uv, then run make again." >&2; exit 1; fi; fi
	@if $(USE_UV); then \
		uv pip install -q --compile-bytecode --python $(PY) --require-hashes -r requirements.lock && \
		uv pip install -q --python $(PY) --no-deps --no-build-isolation -e .; \
	else \
		$(PY) -m pip install $(PIP_FLAGS) --no-deps --require-hashes -r requirements.lock && \
		$(PY) -m pip install $(PIP_FLAGS) --no-deps --no-build-isolation -e .; fi
	@$(PY) -m compileall -q src
	@touch $@
