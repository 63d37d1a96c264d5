# Everything runs in an environment of its own, .venv, that is made when it is first needed and
# brought up to date when pyproject.toml changes.

PYTHON ?= python3
ARGS ?=
BIN = .venv/bin
# Where a version of NumPy, JAX, Numba, scikit-learn, SciPy, Optuna, Dask, matplotlib, ONNX or safetensors can show.
LOWEST_TESTS = nnx $(addprefix tests/,backends/test_backends.py backends/numpy graph/test_compiled_steps.py \
  layers/test_against_references.py optimizers/test_against_references.py saving/test_model_files.py callbacks \
  estimators plot export data/test_datasets.py)
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check

help:  ## list the commands (this)
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 22
	@echo "PYTHON=python3.12 chooses the Python of .venv; ARGS='...' is passed on to train.py and pytest."

train: .venv/train.stamp  ## train on handwritten digits; for example ARGS='--data iris --epochs 20'
	$(BIN)/python train.py $(ARGS)

# XLA_FLAGS= is XLA as users have it. Otherwise the tests tell it to compile fast: see tests/conftest.py.
test: .venv/dev.stamp  ## run the tests, on NumPy, JAX and the strict array-API namespace
	XLA_FLAGS= $(BIN)/python -m pytest -q -x tests/test_smoke.py
	$(BIN)/python -m pytest -n auto -m 'not slow' $(ARGS)

test-slow: .venv/dev.stamp  ## run what test leaves out: tutorials, kills at random moments, fuzzing, what XLA optimizes
	XLA_FLAGS= $(BIN)/python -m pytest -n auto -m 'slow or optimized' $(ARGS)

test-all: test test-slow  ## run all tests, and property tests with more drawn examples
	XLA_FLAGS= $(BIN)/python -m pytest -n auto -m hypothesis --hypothesis-profile=many $(ARGS)

test-cupy: .venv/cupy.stamp  ## run what touches arrays on CuPy: on the GPU, or without one on an emulated device
	$(BIN)/python -m pytest --cupy -n auto $(ARGS)

test-lowest: .venv-lowest/stamp  ## run what can depend on versions on the lowest ones of all packages that nnx takes
	XLA_FLAGS= .venv-lowest/bin/python -m pytest -n auto -m 'not slow' -k 'not memory and not jobs and not nproc' \
	  -W default::DeprecationWarning $(LOWEST_TESTS) $(ARGS)

fuzz: .venv/dev.stamp  ## train random networks in all ways that must agree; for example ARGS='--seconds 3600'
	$(BIN)/python tests/helpers/fuzz_networks.py $(ARGS)

lint: .venv/dev.stamp  ## check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

api: .venv/dev.stamp  ## write the list of all public names, docs/api.txt
	$(BIN)/python tests/helpers/public_api.py

bench: .venv/bench.stamp  ## measure speed, about seven minutes; NNX_BACKEND=cupy picks one backend
	$(BIN)/python -m pytest benchmarks --benchmark-autosave --benchmark-columns=median,iqr,rounds \
	  --benchmark-sort=name $(ARGS)

bench-peers: .venv/bench.stamp  ## install PyTorch, Keras and Optax for bench to compare with
	$(INSTALL) -e '.[bench,peers]'

bench-report: .venv/bench.stamp  ## make docs/benchmarks.md and its pictures from the newest saved run
	$(BIN)/python -m benchmarks.report $(ARGS)

clean:  ## remove the environment and all caches; keeps runs/
	rm -rf .venv .venv-lowest build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/python.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: Python 3.11 or newer is needed: name one as in  make PYTHON=python3.12 train" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo "make: '$(PYTHON) -m venv' failed; on Debian and Ubuntu first run:  apt install python3-venv" >&2; \
	  exit 1; }
	@touch $@

.venv/train.stamp: pyproject.toml | .venv/python.stamp
	$(INSTALL) -e '.[sklearn,plot]'
	@touch $@

.venv/dev.stamp: pyproject.toml | .venv/python.stamp
	$(INSTALL) -e '.[dev]'
	@touch $@

# For a GPU also the CUDA libraries, which are gigabytes and which the emulated device does without.
.venv/cupy.stamp: pyproject.toml | .venv/python.stamp
	$(INSTALL) -e '.[test-cupy]' $(if $(wildcard /dev/nvidia0),-e '.[cuda13]')
	@touch $@

# uv, because pip always takes the newest. What these packages need in turn is the newest that they allow.
.venv-lowest/stamp: pyproject.toml | .venv/python.stamp
	$(INSTALL) uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-lowest
	$(BIN)/uv pip install --quiet --python .venv-lowest --resolution lowest-direct -e '.[test,search]'
	@touch $@

.venv/bench.stamp: pyproject.toml | .venv/python.stamp
	$(INSTALL) -e '.[bench]'
	@touch $@

.PHONY: help fuzz train test test-slow test-all test-cupy test-lowest lint api bench bench-peers bench-report clean
.DELETE_ON_ERROR:
