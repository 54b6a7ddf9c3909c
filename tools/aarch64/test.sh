#!/usr/bin/env bash
# Run the aarch64 tests under qemu as one CPU: test.sh DIR CTEST CPU ISAS
#
#   DIR     has cpp/ (the C++ tests) and venv-test/ (the wheel, installed)
#   ISAS    the instruction sets that this CPU must offer, and no other: scalar,neon
#
# On `max` every test of Python runs that needs no torch; on the other CPUs those that reach the C++
# core. Left out everywhere: the 450 M model (marker full), and what is marked real_cpu.
set -euo pipefail
dir=$(cd "$1" && pwd)
ctest=$2
here=$(cd "$(dirname "$0")" && pwd)
export QEMU_CPU=$3 SMOLVLA_EXPECT_ISAS=$4
export CXX=aarch64-linux-gnu-g++  # a test compiles a library and loads it

core=(
    tests/golden/test_native_golden.py tests/golden/test_gate.py tests/golden/test_batches.py
    tests/golden/test_pipeline.py
    tests/golden/test_bfloat16.py tests/unit/test_isas.py tests/unit/test_cpu_ops.py
    tests/unit/test_benchmark_kernels.py tests/unit/test_core_lifetime.py
    tests/unit/test_core_refusals.py tests/unit/test_bundle_witness.py tests/unit/test_runtime.py
)
[ "$QEMU_CPU" != max ] || core=(tests)

echo "== aarch64, $QEMU_CPU, expecting $SMOLVLA_EXPECT_ISAS: C++"
"$ctest" --test-dir "$dir/cpp" --output-on-failure --no-tests=error
echo "== aarch64, $QEMU_CPU, expecting $SMOLVLA_EXPECT_ISAS: Python"
"$here/../wheel/test_installed.sh" "$dir/venv-test/bin/python" \
    -q -m 'not full and not real_cpu' "${core[@]}"
