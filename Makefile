# Two commands do everything on a fresh machine: `make demo` and `make test`. Each makes its own virtual environment.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CORE   := $(VENV)/.core
STAMP  := $(VENV)/.installed
CACHE  := .cache
FAMILY ?= a

.PHONY: help demo test check venv bench-lineage bench-errors bench-rewrites bench-retrieval bench-sizes bench-crash bench-resources bench-hostile clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

venv: $(STAMP) ## make the virtual environment

$(CORE): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo]'
	touch $(CORE)

# Tests and benchmarks need torch as well: its CPU build is enough.
$(STAMP): $(CORE)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: $(CORE) ## fetch real weights, register two models, scan four suspects
	$(BIN)/python -m benchmarks.demo --cache $(CACHE)

test: $(STAMP) ## run the tests
	$(BIN)/python -m pytest -n 2 --dist loadgroup

check: $(STAMP) ## lint, types, import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench-lineage: $(STAMP) ## train models of FAMILY (a), derive suspects, scan them, write the tables
	$(BIN)/python -m benchmarks.zoo --family $(FAMILY) --out $(CACHE)/zoo
	$(BIN)/python -m benchmarks.lineage.run --family $(FAMILY) --zoo $(CACHE)/zoo --out docs/benchmarks

bench-errors: $(STAMP) ## error rates of every test on unrelated models
	$(BIN)/python -m benchmarks.error_rates --zoo $(CACHE)/zoo --corpus $(CACHE)/corpus --out docs/benchmarks

bench-rewrites: $(STAMP) ## models rewritten so that they compute the same, renamed, damaged and scanned
	$(BIN)/python -m benchmarks.zoo --family $(FAMILY) --out $(CACHE)/zoo
	$(BIN)/python -m benchmarks.zoo --family styles --out $(CACHE)/zoo
	-$(BIN)/python -m benchmarks.rewrites.run --family $(FAMILY) --zoo $(CACHE)/zoo --rows $(CACHE)/rewrites.jsonl
	-$(BIN)/python -m benchmarks.rewrites.run --family styles --zoo $(CACHE)/zoo --rows $(CACHE)/rewrites.jsonl
	-$(BIN)/python -m benchmarks.units.run --zoo $(CACHE)/units --out $(CACHE)/units.json
	$(BIN)/python -m benchmarks.rewrites.table --rows $(CACHE)/rewrites.jsonl --units $(CACHE)/units.json --out docs/benchmarks/rewrites.md

bench-retrieval: $(STAMP) ## a registry of 1,000 models: time of a search, and what the index misses
	$(BIN)/python -m benchmarks.retrieval --zoo $(CACHE)/zoo --out docs/benchmarks

bench-sizes: $(STAMP) ## sizes of signatures of large models
	$(BIN)/python -m benchmarks.signature_size

bench-crash: $(STAMP) ## kill -9 at random moments of register and import, 200 times
	$(BIN)/python -m benchmarks.crash_safety

bench-resources: $(STAMP) ## time and memory of full scans, beside a checksum of the same file
	$(BIN)/python -m benchmarks.resources --out docs/benchmarks

bench-hostile: $(STAMP) ## memory and time on the hostile corpus
	$(BIN)/python -m benchmarks.hostile --out docs/benchmarks

clean: ## remove the virtual environment and what the benchmarks cached
	rm -rf $(VENV) $(CACHE) build *.egg-info
