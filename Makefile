# make test    what every change must pass           make demo   a job that loses a worker and comes back
# make bench   the table of docs/benchmarks.md       make help   all targets
#
# The environment in .venv is made by whichever target comes first, and made again when pyproject.toml changes.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?=
TORCH ?= torch==2.13.0
PEER ?= ray[train]==2.60.0
AZURITE ?= 3.34.0
DEEPSPEED ?= deepspeed>=0.19,<0.20
ORBAX ?= orbax-checkpoint==0.12.*
PEER_FRAMEWORKS ?= lightning==2.6.* pytorch-lightning==2.6.* transformers==5.* accelerate
OLDER_TRANSFORMERS ?= transformers==4.57.6 huggingface_hub==0.36.2 tokenizers==0.22.2 datasets==4.0.0
S3_PEERS ?= s3fs==2026.9.0 boto3==1.43.117

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
FRAMEWORKS_STAMP := $(VENV)/.frameworks
OLDER_TRANSFORMERS_PLACE := .tools/older-transformers
PEER_VENV := .venv-peer
PEER_STAMP := $(PEER_VENV)/.ready
# A peer's environment that exists already: make bench PEER_PYTHON=/path/to/python
PEER_PYTHON ?= $(CURDIR)/$(PEER_VENV)/bin/python

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help
help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

# torch goes in by itself and pinned: left to the resolver, a newer one may come with several GB of CUDA libraries.
$(STAMP): pyproject.toml scripts/find-python
	@test -x $(BIN)/python || { python=$$(scripts/find-python $(PYTHON)); echo "Making $(VENV) with $$python"; \
		"$$python" -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet "$(TORCH)" numpy
	$(BIN)/python -m pip install --quiet --editable ".[torch,pandas,dev]"
	@touch $@

# What only the tests of the frameworks need: a few GB, and two minutes. DeepSpeed looks at the torch that is installed, so it is built
# beside it; where it cannot be, its tests say so and are skipped.
$(FRAMEWORKS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet "$(TORCH)" --editable ".[frameworks]"
	$(BIN)/python -m pip install --quiet --no-deps "tf_keras>=2.19"  # it would bring a TensorFlow with CUDA beside the other one
	$(BIN)/python -m pip install --quiet setuptools wheel ninja py-cpuinfo
	DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(BIN)/python -m pip install --quiet --no-build-isolation "$(DEEPSPEED)" || \
		echo "DeepSpeed cannot be installed here; its tests are skipped" >&2
	@touch $@

.PHONY: install
install: $(STAMP)  ## make the environment in .venv

.PHONY: lint
lint: $(STAMP)  ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What single tests need of the system; where it cannot be installed they skip themselves and say so.
.PHONY: test-packages
test-packages:
	@scripts/install-packages mkfs.xfs=xfsprogs mkfs.btrfs=btrfs-progs
	@scripts/install-packages ceph-mon=ceph-mon ceph-osd=ceph-osd radosgw=radosgw ceph=ceph-common
	@scripts/install-azurite $(AZURITE) .tools/azurite

.PHONY: test
test: lint test-packages $(FRAMEWORKS_STAMP)  ## lint, and every test that is not slow
	$(BIN)/python -m pytest -m "not slow"

.PHONY: test-all
test-all: lint test-packages $(FRAMEWORKS_STAMP)  ## lint, all tests, those of Transformers on its version 4, the core's on other Pythons
	$(BIN)/python -m pytest
	$(MAKE) --no-print-directory test-older-transformers
	scripts/test-other-pythons $(BIN)/python

# Laid over the newer ones of the environment, which has all else that they need. Version 4 would import TensorFlow because it is there.
$(OLDER_TRANSFORMERS_PLACE)/.ready: Makefile $(FRAMEWORKS_STAMP)
	rm -rf $(OLDER_TRANSFORMERS_PLACE)
	$(BIN)/python -m pip install --quiet --no-deps --target $(OLDER_TRANSFORMERS_PLACE) $(OLDER_TRANSFORMERS)
	@touch $@

.PHONY: test-older-transformers
test-older-transformers: $(OLDER_TRANSFORMERS_PLACE)/.ready  ## the tests of Transformers on its version 4
	USE_TF=0 PYTHONPATH=$(CURDIR)/$(OLDER_TRANSFORMERS_PLACE) $(BIN)/python -m pytest tests/frameworks/test_transformers*.py

# On a local path, or with STORE=s3 in a bucket of an S3 server that the demo starts and stops.
STORE ?= local
DEMO_local := examples/demo.py
DEMO_s3 := examples/demo_in_bucket.py

.PHONY: demo
demo: $(STAMP)  ## train, kill a worker, recover, compare (STORE=s3: in a bucket)
	@test -n "$(DEMO_$(STORE))" || { echo "STORE is local or s3, not $(STORE)" >&2; exit 2; }
	$(BIN)/python $(DEMO_$(STORE))

$(PEER_STAMP): Makefile
	@test -x $(PEER_VENV)/bin/python || { python=$$(scripts/find-python $(PYTHON)); "$$python" -m venv $(PEER_VENV); }
	$(PEER_VENV)/bin/python -m pip install --quiet "$(TORCH)" numpy
	$(PEER_VENV)/bin/python -m pip install --quiet "$(PEER)"
	$(PEER_VENV)/bin/python -m pip install --quiet "$(ORBAX)"
	$(PEER_VENV)/bin/python -m pip install --quiet $(S3_PEERS)
	$(PEER_VENV)/bin/python -m pip install --quiet $(PEER_FRAMEWORKS)
	@touch $@

ifeq ($(PEER_PYTHON),$(CURDIR)/$(PEER_VENV)/bin/python)
BENCH_NEEDS := $(PEER_STAMP)
endif

# The server of the measures of buckets.
.PHONY: bench-packages
bench-packages:
	@scripts/install-packages ceph-mon=ceph-mon ceph-osd=ceph-osd radosgw=radosgw ceph=ceph-common

.PHONY: bench
bench: $(FRAMEWORKS_STAMP) $(BENCH_NEEDS) bench-packages  ## measure against the peer and write docs/benchmarks.md (half an hour; ARGS=--quick)
	$(BIN)/python -m benchmarks --peer-python "$(PEER_PYTHON)" $(ARGS)

.PHONY: docs
docs: $(STAMP)  ## run every example of README.md and docs/
	$(BIN)/python -m pytest tests/docs

.PHONY: format
format: $(STAMP)  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: clean
clean:  ## remove what make made, environments included
	rm -rf $(VENV) $(PEER_VENV) .venv-test-* .tools build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache .demo benchmarks/results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
