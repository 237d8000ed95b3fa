# Works in a bare clone: each target creates .venv and installs what it needs, once, and again when pyproject.toml or
# constraints.txt changes. Comparisons with PyTorch have their own environment, .venv-parity.

PYTHON ?= python3
# Set to ignore constraints.txt and install the newest versions: `make test LATEST=1`.
LATEST ?=
# Two processes; each test file runs in one of them.
WORKERS ?= 2
# In the order of tests/conftest.py, long files first; pytest-xdist would begin with those that have the most tests.
XDIST = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
TESTS ?=
PYTEST_ARGS ?=

SHELL := /bin/bash
# The parity targets call `make` again with .venv-parity.
VENV := .venv
BIN := $(VENV)/bin
# One stamp per set of extras and choice of versions.
KIND := $(if $(LATEST),newest,pinned)
RUN := $(VENV)/installed-tensorflow-$(KIND)
DEV := $(VENV)/installed-dev-$(KIND)
PARITY := $(VENV)/installed-parity-$(KIND)
GPU := $(VENV)/installed-jax-gpu-$(KIND)
REQUIREMENTS := $(wildcard tests/parity/requirements*.txt)
PINS := $(if $(LATEST),--upgrade --upgrade-strategy eager,-c constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help demo test coverage check docs release docker-check parity parity-all compare compare-all environment bench bench-finetune bench-gpu \
  bench-gpu-train bench-gpu-inference gpu-environment clean python FORCE
.NOTPARALLEL:

help:
	@echo "make demo    draw images, train a small EfficientDet on them, show what it detects (minutes on two cores)"
	@echo "make test    run the tests; TESTS=tests/data runs a subset, PYTEST_ARGS='-k boxes' passes more options to pytest,"
	@echo "             WORKERS=0 runs them in one process"
	@echo "make coverage  run the tests and measure coverage; takes a quarter longer"
	@echo "make check   check formatting, lint, types and import layers"
	@echo "make docs    build the documentation into site/; \`python -m http.server -d site\` shows it"
	@echo "make release  build sdist and wheel into dist/, check both, try the wheel in its own environment"
	@echo "make docker-check  run the install lines of docker/Dockerfile in their own environment, without CUDA"
	@echo "make parity  compare D0 and Lite0 with PyTorch's effdet, in its own environment (docs/parity.md);"
	@echo "             parity-all compares the whole family and takes an hour"
	@echo "make bench   measure input pipeline, inference and training step on this CPU, in alternation with effdet;"
	@echo "             RECORDS=records/ and PHOTOS=photographs/ use your own images"
	@echo "make bench-gpu  measure training step and inference on one GPU with JAX; GPU_PYTHON=python3 uses a Python with"
	@echo "             JAX for CUDA, PYTHON_WITH_EFFDET=... measures effdet in alternation (docs/performance.md)"
	@echo "make bench-finetune RECORDS=records/  train this and effdet on the same images; takes hours (docs/performance.md)"
	@echo "make clean   remove .venv, caches and the demo's output; your runs are kept"
	@echo
	@echo "Each target creates .venv and installs into it. PYTHON=python3.12 chooses the Python (3.11 to 3.13);"
	@echo "LATEST=1 installs the newest versions instead of those in constraints.txt."

demo: $(RUN)
	$(BIN)/efficientdet demo --output demo

test: $(DEV)
	$(BIN)/python -m pytest $(XDIST) $(PYTEST_ARGS) $(TESTS)

coverage: $(DEV)
	@$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(XDIST) $(PYTEST_ARGS) $(TESTS)
	@$(BIN)/coverage combine --quiet
	@echo "Covered: $$($(BIN)/coverage report --format=total) % of lines and branches (by file: $(BIN)/coverage report)"

check: $(DEV)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Warnings are errors: a link or an anchor that leads nowhere, a name that the API reference cannot find.
docs: $(DEV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

# RELEASE_OPTIONS=--quick trains for 20 steps instead of running the demo, --python PATH tries another Python.
RELEASE_OPTIONS ?=
release: $(DEV)
	$(BIN)/python scripts/release.py $(RELEASE_OPTIONS)

# The image has the versions of constraints.txt, even if the other targets use the newest.
docker-check:
	$(if $(LATEST),@echo "Skipped: the image has the versions of constraints.txt",$(PYTHON) docker/check.py)

parity parity-all:
	@$(MAKE) --no-print-directory VENV=.venv-parity $(subst parity,compare,$@)

COMPARE = $(BIN)/python tests/parity/compare.py
compare: $(PARITY)
	$(COMPARE) tf_efficientdet_d0 --size 512
	$(COMPARE) tf_efficientdet_lite0 --size 320

# D0, D1 and Lite at their own sizes, larger ones at 512 px; 200 x 328 px is a size that most levels do not divide.
# D7 is D6 with other anchors. All are compared, even after one that differs.
FAMILY := d0:512 d0:200:328 d1:640 d2:512 d3:512 d4:512 d5:512 d6:512 d7x:512 \
  lite0:320 lite1:384 lite2:448 lite3:512 lite3x:640 lite4:640
compare-all: $(PARITY)
	@failed=0; run() { echo "$$*"; "$$@" || failed=1; }; \
	for each in $(FAMILY); do \
	  IFS=: read -r model height width <<<"$$each"; \
	  run $(COMPARE) tf_efficientdet_$$model --size $$height $$width --output benchmarks/results; \
	done; \
	run $(COMPARE) tf_efficientdet_d0 --size 512 --backend jax --output benchmarks/results; \
	exit $$failed

environment: $(PARITY)

# Uses generated images unless RECORDS (a converted dataset) or PHOTOS (a folder) is set. PyTorch's effdet is measured in
# alternation with ours, in the parity environment.
RECORDS ?=
PHOTOS ?=
RESULTS := benchmarks/results
RIVAL := .venv-parity/bin/python benchmarks/effdet_rival.py
bench: $(DEV)
	@$(MAKE) --no-print-directory VENV=.venv-parity environment
	$(BIN)/efficientdet benchmark input $(RECORDS) --output $(RESULTS)/input-cpu.json
	$(BIN)/efficientdet benchmark inference $(if $(PHOTOS),--images $(PHOTOS)) --rival "$(RIVAL) inference" \
	  --output $(RESULTS)/inference-cpu.json
	$(BIN)/efficientdet benchmark train --rival "$(RIVAL) train" --output $(RESULTS)/train-cpu.json
	$(BIN)/python benchmarks/tables.py

# Both fine-tune on the same records. The result file is named after the dataset; runs already in it are not repeated.
FINETUNE_OPTIONS ?=
bench-finetune: $(DEV)
	@[ -n "$(RECORDS)" ] || { echo "make: \`RECORDS\` is empty; pass a converted dataset, RECORDS=records/." >&2; exit 1; }
	@$(MAKE) --no-print-directory VENV=.venv-parity environment
	$(BIN)/python benchmarks/finetuning_compare.py $(RECORDS) \
	  --output $(RESULTS)/finetuning-$(notdir $(RECORDS:%/=%)).json $(FINETUNE_OPTIONS)
	$(BIN)/python benchmarks/tables.py

# One GPU, with JAX and generated images. GPU_PYTHON is a Python with JAX for CUDA and the packages that pyproject.toml
# lists under `dependencies`; TensorFlow is not needed. If it isn't set, .venv-gpu is created. PYTHON_WITH_EFFDET is one
# with PyTorch for CUDA and effdet; both programs share the memory of the GPU, so JAX allocates only what it needs.
GPU_PYTHON ?=
PYTHON_WITH_EFFDET ?=
GPU_MODEL ?= d0
# Weights for inference and its suppression; the default, GPU_MODEL, means random weights.
GPU_WEIGHTS ?= $(GPU_MODEL)
GPU_DEPTHWISE ?= shifts pallas
GPU_PRECISIONS ?= mixed_bfloat16
GPU_TRAIN_BATCHES ?= 64
GPU_BATCHES ?= 1 8 32 128
GPU_ROUNDS ?= 7
# More options for one of them, such as GPU_TRAIN_OPTIONS="--steps 20".
GPU_TRAIN_OPTIONS ?=
GPU_INFERENCE_OPTIONS ?=
BENCH_GPU = KERAS_BACKEND=jax XLA_PYTHON_CLIENT_PREALLOCATE=false PYTHONPATH=src \
  $(or $(GPU_PYTHON),.venv-gpu/bin/python) -m efficientdet benchmark
GPU_RIVAL = $(if $(PYTHON_WITH_EFFDET),--rival "$(PYTHON_WITH_EFFDET) benchmarks/effdet_rival.py $(1) --device cuda")
bench-gpu: bench-gpu-train bench-gpu-inference

bench-gpu-train: gpu-environment
	$(BENCH_GPU) train --preset $(GPU_MODEL) --precisions $(GPU_PRECISIONS) --batch-sizes $(GPU_TRAIN_BATCHES) \
	  --depthwise $(GPU_DEPTHWISE) --devices 1 --steps 10 --rounds $(GPU_ROUNDS) $(call GPU_RIVAL,train) \
	  --output $(RESULTS)/train-gpu.json $(GPU_TRAIN_OPTIONS)

bench-gpu-inference: gpu-environment
	$(BENCH_GPU) inference $(GPU_WEIGHTS) --runtimes keras --precisions $(GPU_PRECISIONS) --batch-sizes $(GPU_BATCHES) \
	  --depthwise $(GPU_DEPTHWISE) --rounds $(GPU_ROUNDS) $(call GPU_RIVAL,inference) \
	  --output $(RESULTS)/inference-gpu.json $(GPU_INFERENCE_OPTIONS)

gpu-environment:
	$(if $(GPU_PYTHON),,@$(MAKE) --no-print-directory VENV=.venv-gpu .venv-gpu/installed-jax-gpu-$(KIND))

clean:
	rm -rf .venv .venv-parity .venv-gpu .coverage .coverage.* htmlcov build dist demo site
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Fails with a clear message if .venv does not run, or has an unsupported Python or a different one than requested.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
VERSION := import sys; print("%d.%d" % sys.version_info[:2])
python:
	@fail() { echo "make: $$1" >&2; exit 1; }; \
	if [ -e $(VENV) ] || [ -L $(VENV) ]; then \
	  has=$$($(BIN)/python -c '$(VERSION)' 2>/dev/null) \
	    || fail "the Python of $(VENV) does not run; remove it with \`rm -rf $(VENV)\` and try again."; \
	  $(BIN)/python -c '$(SUPPORTED)' \
	    || fail "$(VENV) has Python $$has, but 3.11 to 3.13 is required; remove it with \`rm -rf $(VENV)\` and try again."; \
	  [ ! -f $(VENV)/made-for ] || [ "$$(cat $(VENV)/made-for)" = "$$(pwd)" ] \
	    || fail "$(VENV) was created for $$(cat $(VENV)/made-for); remove it with \`rm -rf $(VENV)\` and try again."; \
	  if [ '$(origin PYTHON)' != file ]; then \
	    wanted=$$($(PYTHON) -c '$(VERSION)' 2>/dev/null) || fail "\`PYTHON\` is \`$(PYTHON)\`, which does not run."; \
	    [ "$$has" = "$$wanted" ] || fail "\`PYTHON\` is $$wanted, but $(VENV) has $$has; remove it with \`rm -rf $(VENV)\`."; \
	  fi; \
	else \
	  has=$$($(PYTHON) -c '$(VERSION)' 2>/dev/null) || fail "\`PYTHON\` is \`$(PYTHON)\`, which does not run."; \
	  $(PYTHON) -c '$(SUPPORTED)' \
	    || fail "\`PYTHON\` is $$has, but 3.11 to 3.13 is required; choose one, such as \`make PYTHON=python3.12\`."; \
	  echo "Creating $(VENV) with Python $$has"; \
	  $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); fail "\`$(PYTHON) -m venv\` failed; see above."; }; \
	fi; \
	$(BIN)/python -c 'import pip' 2>/dev/null || $(BIN)/python -m ensurepip >/dev/null \
	  || fail "$(VENV) has no pip; remove it with \`rm -rf $(VENV)\` and try again."

# Shows only the large downloads and the result of pip's output.
SHOWN := /^ *Downloading .*[0-9] MB/ { print "  " $$2, $$3, $$4; fflush() } /^Successfully installed/ { print "  done" }
define install
	@echo "Installing .[$(1)]$(if $(2), and $(2)), $(if $(LATEST),newest versions,versions of constraints.txt); takes a few minutes the first time"
	@rm -f $(VENV)/installed-*
	@set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check --no-input --progress-bar off \
	  $(PINS) -e '.[$(1)]' $(if $(2),-r $(2)) | awk '$(SHOWN)'
	@pwd >$(VENV)/made-for
endef

# The newest versions are looked up every time; pinned ones only when the files have changed.
$(RUN): pyproject.toml constraints.txt $(if $(LATEST),FORCE) | python
	$(call install,tensorflow)
	@touch $(RUN)

$(DEV): pyproject.toml constraints.txt $(if $(LATEST),FORCE) | python
	$(call install,tensorflow$(comma)dev)
	@touch $(RUN) $(DEV)

$(GPU): pyproject.toml constraints.txt $(if $(LATEST),FORCE) | python
	$(call install,jax-gpu)
	@touch $(GPU)

$(PARITY): pyproject.toml constraints.txt $(REQUIREMENTS) $(if $(LATEST),FORCE) | python
	$(call install,tensorflow,tests/parity/requirements.txt)
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input --quiet --no-deps \
	  -r tests/parity/requirements-alone.txt
	@touch $(PARITY)

comma := ,
FORCE:
