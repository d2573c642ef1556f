# `make demo` and `make test` each work as the first command on a fresh clone.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
REAL_CT ?= ../shared/real_ct
FUZZ_SECONDS ?= 3600
# A file's tests stay together, for they share what they build; the files go in the order of
# tests/conftest.py.  One worker more than cores, as much of their time is spent waiting for other
# processes.
PYTEST = $(BIN)/python -m pytest --durations=10 --dist loadfile --no-loadscope-reorder \
  -n $$($(BIN)/python -c 'import os; print(min(4, os.cpu_count() + 1))')
PRODUCT = tests/examples tests/test_docs_site.py tests/test_wheel.py tests/viewing/test_in_browser.py
FUZZ = -max_total_time=$(FUZZ_SECONDS) -max_len=65536 -timeout=20
# Where tests/fuzz/test_fuzz_ctz.py builds it too.
FUZZ_CTZ = cmake -S . -B build/fuzz -DCMAKE_CXX_COMPILER=clang++ -DCTGPU_PYTHON=OFF -DCTGPU_FUZZ=ON \
  -DCTGPU_SANITIZE=ON && cmake --build build/fuzz --parallel --target fuzz_ctz
# tests/support/compiling.py builds it so too.  Of static programs AddressSanitizer makes none.
ARM = command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null
SANITIZE_ARM = cmake -S . -B build/sanitize-arm -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_EXE_LINKER_FLAGS=-static \
  -DCMAKE_CXX_FLAGS="-fsanitize=undefined -fno-sanitize-recover=all" -DCTGPU_PYTHON=OFF \
  -DCTGPU_TESTS=ON && cmake --build build/sanitize-arm --parallel --target test_ctz
# Folders with C++.
CPP = kernels tests/fuzz tests/support
# Else every process would compile the modules, and every worker rewrite the tests, in every run.
unexport PYTHONDONTWRITEBYTECODE
NATIVE := CMakeLists.txt pyproject.toml $(shell find kernels -type f)

.PHONY: help demo quick test test-package test-product exhaustive test-hostile lint layers types format docs wheel bench sanitize fuzz gpu-pack gpu-check clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## make a small CT-RATE-like source, build it, show what came out
	$(BIN)/ctgpu demo --output-dir demo

quick: $(VENV)/.developer  ## the tests that are not marked slow
	$(PYTEST) -m 'not slow'

test: test-package test-product  ## every test that needs no GPU but the exhaustive, on up to four cores

test-package: $(VENV)/.developer  ## those of the package
	$(PYTEST) $(PRODUCT:%=--ignore=%)

test-product: $(VENV)/.developer  ## those of what people install, open and copy: wheel, pages in a browser, examples
	$(PYTEST) $(PRODUCT)

exhaustive: $(VENV)/.developer  ## what takes minutes: every CUDA kernel and full volumes as PTX, and repetitions
	$(BIN)/python -m pytest --durations=10 -m exhaustive

test-hostile: $(VENV)/.developer  ## some of them with an environment set to do harm
	BIN=$(BIN) .ci/hostile

lint: $(VENV)/.developer layers  ## ruff, clang-format, and that imports point one way
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(find $(CPP) -name '*.h' -o -name '*.cpp' -o -name '*.cu')

# -S: to the finder of an editable installation the whole checkout is the package.
layers: $(VENV)/.developer  ## that imports point one way
	PYTHONPATH=$$(echo $(VENV)/lib/python*/site-packages) $(BIN)/python -S $(BIN)/lint-imports --no-logo

types: $(VENV)/.developer  ## mypy, strict
	$(BIN)/mypy

format: $(VENV)/.developer  ## rewrite the sources as lint wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(find $(CPP) -name '*.h' -o -name '*.cpp' -o -name '*.cu')

docs: $(VENV)/.docs  ## the pages of docs/ as a site in build/docs, strictly: every link leads somewhere
	$(BIN)/python -m mkdocs build --quiet
	@echo "docs: build/docs/index.html; to search it: $(BIN)/python -m http.server --directory build/docs"

wheel: $(VENV)/.wheel  ## sdist and wheel in build/dist, with libdeflate in it; auditwheel says where it runs
	BIN=$(BIN) .ci/wheel build/dist

bench: $(VENV)/.developer  ## every benchmark at tiny size, on one page
	$(BIN)/python -m benchmarks

sanitize:  ## the C++ engine and the codec under AddressSanitizer and UBSan, on random volumes
	cmake -S . -B build/sanitize -DCTGPU_PYTHON=OFF -DCTGPU_TESTS=ON -DCTGPU_SANITIZE=ON
	cmake --build build/sanitize --parallel
	build/sanitize/test_bits --random 300 1
	build/sanitize/test_ctz --random 1000 1
	@{ $(ARM); } || echo "sanitize: there is no g++ or qemu-user for Arm, so that is left out"
	! { $(ARM); } || { $(SANITIZE_ARM) && qemu-aarch64 build/sanitize-arm/test_ctz --random 300 1; }

fuzz: $(VENV)/.developer  ## coverage-guided fuzzing of decoders, tar reader and codec, FUZZ_SECONDS each
	mkdir -p build/fuzz-decode build/fuzz-tar build/fuzz-members build/fuzz-ctz
	$(BIN)/python tests/fuzz/fuzz_decode.py build/fuzz-decode $(FUZZ) -artifact_prefix=build/fuzz-decode/
	$(BIN)/python tests/fuzz/fuzz_tar.py build/fuzz-tar $(FUZZ) -artifact_prefix=build/fuzz-tar/
	$(BIN)/python tests/fuzz/fuzz_ctz.py build/fuzz-members $(FUZZ) -artifact_prefix=build/fuzz-members/
	@command -v clang++ >/dev/null || echo "fuzz: there is no clang++, so the C++ of the codec is left out"
	! command -v clang++ >/dev/null || { $(FUZZ_CTZ) && \
	  build/fuzz/fuzz_ctz build/fuzz-ctz $(FUZZ) -max_len=2048 -len_control=0 -artifact_prefix=build/fuzz-ctz/; }

gpu-pack:  ## with internet: wheels and real CT that a bare GPU machine lacks, into .gpu-check/
	$(PYTHON) tests/gpu/pack.py --real-ct $(REAL_CT)

gpu-check:  ## on a machine with a GPU, offline: all there is to know, in ten minutes; one JSON
	$(PYTHON) tests/gpu/check.py

clean:  ## remove what the other targets made
	rm -rf $(VENV) build demo

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: $(NATIVE) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[view]'
	@touch $@

$(VENV)/.developer: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --group dev
	@touch $@

$(VENV)/.wheel: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --group wheel
	@touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --group docs
	@touch $@
