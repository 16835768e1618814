# Thin names for nox sessions. Needs make, git and Python 3.11 or newer; everything else is installed
# into .tools/ and .nox/ inside this folder.

PYTHON ?= python3
NOX = .tools/bin/python -m nox
export PATH := $(CURDIR)/.tools/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help reproduce test verify dev bench docs dist lint format results clean

help:  ## list these targets
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12
	@echo "PKG=name limits reproduce, test and bench to one package; FULL=1 reproduces at paper size, and asks for YES=1 or MAX_HOURS=n above 2 hours a package."

.tools/ready: constraints/tools.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=python3.x")'
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet --disable-pip-version-check -r constraints/tools.txt
	@touch .tools/ready

reproduce: .tools/ready  ## run every default figure and write runs/report/index.html
	$(NOX) -s reproduce -- $(PKG)

test: .tools/ready  ## lint, types, all tests, docs, tables and the report page
ifdef PKG
	$(NOX) -s test-$(PKG)
else
	$(NOX) -s test
endif

verify: .tools/ready  ## check every committed record against its key, compute three again
	$(NOX) -s verify

dev: .tools/ready  ## make .venv with the core and all packages, editable
	$(NOX) -s dev

bench: .tools/ready  ## measure the performance targets (BENCH_PEERS=1 adds other libraries, FULL=1 takes hours)
	$(NOX) -s $(if $(PKG),bench-$(PKG),$(patsubst packages/%/pyproject.toml,bench-%,$(wildcard packages/*/pyproject.toml)))$(if $(FULL), -- --full)

docs: .tools/ready  ## build docs/_build/html
	$(NOX) -s docs

dist: .tools/ready  ## build release wheels into dist/
	$(NOX) -s dist

lint: .tools/ready  ## style and types
	$(NOX) -s lint types

format: .tools/ready  ## format the code
	$(NOX) -s lint -- --fix

results: .tools/ready  ## rewrite the generated tables from the committed records
	$(NOX) -s report-check -- --write

clean:  ## remove environments and caches, never runs/
	rm -rf .nox .tools .venv dist docs/_build .mypy_cache .pytest_cache .ruff_cache
