# The first run installs: Debian packages if any is missing (as root), and the rest below this directory, in .venv and .cache.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

BIN := .venv/bin
# Three processes share the tests, two of them with labs of their own: most of the time, a test in a lab waits. See tests/sharing.py.
PYTEST_ARGS ?= -n 3 --dist loadfile
BENCH_ARGS ?=
TRIXIE_ARGS ?=

.PHONY: help
help: ## what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: install ## two sites, a busy guest, and its move from one to the other and back
	@$(BIN)/python -m tests.lab.demo

.PHONY: test
test: install ## all tests, the ones with real hosts and guests last
	$(BIN)/pytest $(PYTEST_ARGS)

.PHONY: lint
lint: .venv/.installed ## style, types, import rules, generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python proto/generate.py --check

.PHONY: trixie
trixie: install ## Landbridge on Debian 13: unit tests, moves, attacks, and moves from and to Debian 12; makes its root once
	@test -x /usr/sbin/debootstrap || apt-get -qy install --no-install-recommends debootstrap
	@$(BIN)/python -m tests.trixie $(TRIXIE_ARGS)

.PHONY: mutation
mutation: install ## how many changes of the code that decides its tests notice, and which they do not
	test -x $(BIN)/mutmut || $(BIN)/python -m pip install --quiet 'mutmut>=3.8,<4'
	rm -rf mutants
	$(BIN)/mutmut run </dev/null >mutation.log || { tail -50 mutation.log; exit 1; }
	$(BIN)/mutmut export-cicd-stats </dev/null
	$(BIN)/mutmut results </dev/null
	@$(BIN)/python -m tests.mutation

.PHONY: bench
bench: install ## a guest's move through Landbridge, beside the same move by libvirt alone
	@$(BIN)/python -m tests.bench.move $(BENCH_ARGS)

# Installation

.PHONY: install
install: .venv/.installed .cache/lab/.prepared ## all that the others need; quick when it is there

.PHONY: debian
debian:
	@.ci/debian

# Nothing is built or run that the lock files do not name by its hash: what builds comes first, and builds without isolation.
.venv/.installed: requirements-build.lock requirements.lock pyproject.toml | debian
	@echo 'Installing the Python packages of requirements.lock in .venv'
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || "$$(.ci/python)" -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements-build.lock
	@$(BIN)/python -m pip install --quiet --require-hashes --no-build-isolation -r requirements.lock
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# Debian's archive drops a kernel when the next one comes: an old list of packages may name one that is gone.
.cache/lab/.prepared: .venv/.installed tests/lab/kernel.py tests/lab/guest.c tests/lab/wan.c
	@echo "Fetching the guest's kernel into .cache"
	@$(BIN)/python -m tests.lab prepare >/dev/null || { apt-get -q update; $(BIN)/python -m tests.lab prepare; }
	@touch $@

.PHONY: lock
lock: .venv/.installed ## resolve the dependencies of pyproject.toml anew, within its bounds
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet 'uv>=0.8'
	$(UV_COMPILE) --group build -o requirements-build.lock
	$(UV_COMPILE) pyproject.toml --group dev -o requirements.lock

UV_COMPILE = $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header

.PHONY: clean
clean: ## remove all that was made here
	rm -rf .venv .cache mutants mutation.log .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build landbridge.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
