# Two commands do everything on a fresh machine: `make demo` and `make test`. Each makes its own virtual environment.
PYTHON ?= python3
PYTHON312 ?= python3.12
VENV   := .venv
BIN    := $(VENV)/bin
CORE   := $(VENV)/.core
STAMP  := $(VENV)/.installed
ENGINES := $(VENV)/.engines
CACHE  := .cache
FAMILY ?= a
MODELDNA ?= $(CACHE)/peers/modeldna/bin/modeldna
RUNS   ?= 200000

.PHONY: $(shell sed -nE 's/^([a-z0-9-]+):.*[#][#].*/\1/p' $(firstword $(MAKEFILE_LIST)))
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 24

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

# One thread each: the workers share the processors, and threads of BLAS that wait for one another burn them.
test: $(STAMP) ## run the tests
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# Ray and Milvus are large, and most users need neither.
$(ENGINES): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[milvus,ray]'
	touch $(ENGINES)

test-engines: $(ENGINES) ## install Milvus and Ray too, and run the tests that need them
	$(BIN)/python -m pytest -m engines

check: $(STAMP) ## lint, types, import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench-lineage: $(STAMP) ## train models of FAMILY (a), derive suspects, scan them, write the tables
	$(BIN)/python -m benchmarks.zoo --family $(FAMILY) --out $(CACHE)/zoo
	$(BIN)/python -m benchmarks.lineage.run --family $(FAMILY) --zoo $(CACHE)/zoo --out docs/benchmarks

bench-errors: $(STAMP) ## error rates of every test on unrelated models
	$(BIN)/python -m benchmarks.zoo --family $(FAMILY) --out $(CACHE)/zoo
	$(BIN)/python -m benchmarks.zoo --family styles --out $(CACHE)/zoo
	$(BIN)/python -m benchmarks.error_rates --zoo $(CACHE)/zoo --family $(FAMILY) --corpus $(CACHE)/corpus --workers 2 \
		--out docs/benchmarks

bench-concordance: $(STAMP) ## what unrelated models have in common, by style and frame: the calibration and its check
	$(BIN)/python -m benchmarks.zoo --family $(FAMILY) --out $(CACHE)/zoo
	$(BIN)/python -m benchmarks.zoo --family styles --out $(CACHE)/zoo
	$(BIN)/python -m benchmarks.error_rates.concordance --zoo $(CACHE)/zoo --family $(FAMILY) \
		--counts $(CACHE)/concordance.jsonl --out docs/benchmarks

bench-units-errors: $(STAMP) ## error rates of the tests on hidden units, between networks without a residual stream
	$(BIN)/python -m benchmarks.units.null --zoo $(CACHE)/units --corpus $(CACHE)/corpus --out docs/benchmarks

bench-rewrites: $(STAMP) ## models rewritten so that they compute the same, renamed, damaged and scanned
	$(BIN)/python -m benchmarks.zoo --family $(FAMILY) --out $(CACHE)/zoo
	$(BIN)/python -m benchmarks.zoo --family styles --out $(CACHE)/zoo
	-$(BIN)/python -m benchmarks.rewrites.run --family $(FAMILY) --zoo $(CACHE)/zoo --rows $(CACHE)/rewrites.jsonl
	-$(BIN)/python -m benchmarks.rewrites.run --family styles --zoo $(CACHE)/zoo --rows $(CACHE)/rewrites.jsonl
	-$(BIN)/python -m benchmarks.units.run --zoo $(CACHE)/units --out $(CACHE)/units.json
	$(BIN)/python -m benchmarks.rewrites.table --rows $(CACHE)/rewrites.jsonl --units $(CACHE)/units.json --out docs/benchmarks/rewrites.md

bench-vit: $(STAMP) ## vision transformers rewritten, damaged and scanned
	$(BIN)/python -m benchmarks.vit --zoo $(CACHE)/units --out docs/benchmarks

bench-full-size: $(STAMP) ## SmolLM2-135M rewritten, rounded and renamed, in a registry of 1,000 models
	$(BIN)/python -m benchmarks.zoo --family $(FAMILY) --out $(CACHE)/zoo
	$(BIN)/python -m benchmarks.rewrites.full_size --cache $(CACHE) --zoo $(CACHE)/zoo --family $(FAMILY) \
		--out docs/benchmarks

bench-retrieval: $(STAMP) ## 1,000 models and their look-alikes, damaged and rewritten suspects: what the index misses
	$(BIN)/python -m benchmarks.zoo --family $(FAMILY) --out $(CACHE)/zoo
	$(BIN)/python -m benchmarks.zoo --family styles --out $(CACHE)/zoo
	$(BIN)/python -m benchmarks.retrieval --zoo $(CACHE)/zoo --family $(FAMILY) --family styles --suspects 792 \
		--rewritten 420 --out docs/benchmarks

bench-retrieval-large: $(STAMP) ## the same with 10,000 models
	$(BIN)/python -m benchmarks.zoo --family $(FAMILY) --out $(CACHE)/zoo
	$(BIN)/python -m benchmarks.zoo --family styles --out $(CACHE)/zoo
	$(BIN)/python -m benchmarks.retrieval --zoo $(CACHE)/zoo --family $(FAMILY) --family styles --models 10000 \
		--suspects 792 --rewritten 420 --out docs/benchmarks

bench-vectors: $(STAMP) ## the index at 1, 3 and 10 million vectors: size, time, what it misses
	$(BIN)/python -m benchmarks.vectors --out docs/benchmarks

bench-registry: $(STAMP) ## a registry of 100,000 models: time of a registration, a scan, a listing
	$(BIN)/python -m benchmarks.registry_100k --out docs/benchmarks

bench-sizes: $(STAMP) ## sizes of signatures of large models
	$(BIN)/python -m benchmarks.signature_size

bench-crash: $(STAMP) ## kill -9 at random moments of register and import, 200 times
	$(BIN)/python -m benchmarks.crash_safety

bench-resources: $(STAMP) $(MODELDNA) ## time and memory of scans, beside a checksum and modelDNA on the same files
	$(BIN)/python -m benchmarks.resources --modeldna $(MODELDNA) --out docs/benchmarks

bench-remote: $(STAMP) ## quick looks at invented repositories of 812 and 689 GB
	$(BIN)/python -m benchmarks.virtual_hub --out docs/benchmarks

bench-hostile: $(STAMP) ## memory and time on the hostile corpus
	$(BIN)/python -m benchmarks.hostile --out docs/benchmarks

bench-bulk: $(ENGINES) ## 200 checkpoints: alone, in a pool and in Ray, with a worker killed midway
	$(BIN)/python -m benchmarks.bulk --out docs/benchmarks

bench-containers: $(STAMP) ## real weights in every container and quantised form, by the producing libraries
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(CACHE)/producers \
		-r benchmarks/containers/requirements.txt
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-binary=:all: \
		--dest $(CACHE)/sources autoawq==0.2.9 gptqmodel==7.7.0
	for file in $(CACHE)/sources/*.tar.gz; do tar -xzf $$file -C $(CACHE)/sources; done
	PYTHONPATH=$(CACHE)/producers $(BIN)/python -m benchmarks.containers --cache $(CACHE) \
		--sources $(CACHE)/sources --out docs/benchmarks

bench-fuzz: $(STAMP) ## coverage-guided fuzzing of every parser, RUNS (200000) executions each
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	$(BIN)/python -m benchmarks.fuzz --runs $(RUNS) --out docs/benchmarks

bench-undoing: $(STAMP) ## deep comparisons of rewritten relatives of four styles, of independent seeds, of SmolLM2-135M
	$(BIN)/python -m benchmarks.undoing --family $(FAMILY) --cache $(CACHE)

bench-adversarial: $(STAMP) ## forged registrations, framed innocents, evasion: what is reported, what it costs
	$(BIN)/python -m benchmarks.adversarial --zoo $(CACHE)/zoo

bench-disclosure: $(STAMP) ## how much of the weights a signature gives away; REAL: checkpoints to look at too
	$(BIN)/python -m benchmarks.disclosure --zoo $(CACHE)/zoo $(foreach path,$(REAL),--real $(path))

$(CACHE)/peers/modeldna/bin/modeldna:
	$(PYTHON) -m venv $(CACHE)/peers/modeldna
	$(CACHE)/peers/modeldna/bin/pip install --quiet --disable-pip-version-check modeldna==0.1.0

# Cisco's kit asks for Python 3.12, and brings 5 GB.
bench-peers: $(STAMP) $(MODELDNA) ## modelDNA and Cisco's kit (where PYTHON312, python3.12, is there) beside this program
	-test -x $(CACHE)/peers/cisco/bin/provenancekit || ($(PYTHON312) -m venv $(CACHE)/peers/cisco && $(CACHE)/peers/cisco/bin/pip install -q torch==2.13.0 cisco-ai-provenance-kit==1.0.0)
	$(BIN)/python -m benchmarks.peers --zoo $(CACHE)/zoo --tool modeldna=$(MODELDNA) --tool cisco=$(CACHE)/peers/cisco/bin/provenancekit

clean: ## remove the virtual environment and what the benchmarks cached
	rm -rf $(VENV) $(CACHE) build *.egg-info
