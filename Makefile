# `make demo` and `make test` set everything up by themselves, in a virtual environment of this checkout.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
# Both take PyTorch as the platform gives it: the CPU or the CUDA build of the version in the constraints.
CONSTRAINTS := constraints.txt

.PHONY: demo test setup lint bench gpu-gate clean

demo: setup
	$(BIN)/python -m posgan_fast demo

# Files side by side; the threads that torch starts in each must not spin while they wait for a core.
test: setup
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --cov --cov-report=term $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror csrc/* tests/native/*.cpp tests/native/*.h

bench: setup
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

# On a bare GPU machine without network the interpreter at hand has all that is needed; DRY_RUN=1 walks it on a CPU.
DRY := $(filter-out 0,$(DRY_RUN))

gpu-gate: $(if $(DRY),setup)
	$(if $(DRY),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu_gate $(if $(DRY),--dry-run) $(GATE_ARGS)

setup: $(VENV)/ready

$(VENV)/ready: setup.py pyproject.toml $(CONSTRAINTS) requirements-dev.txt $(wildcard csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

clean:
	rm -rf build dist out $(VENV) posgan_fast/lib *.egg-info
