#!/usr/bin/env bash
# Make dist/'s aarch64 wheel: the source distribution of dist/, built by the aarch64 Python under
# qemu, which calls this machine's cmake, ninja and cross compiler. The interpreter is asked on its
# own architecture, so the tag, the file name of the core and the include paths are its own answers.
#
#   wheel.sh DIR BIN     DIR: made by python.sh; BIN: as for tools/wheel/build.sh
set -euo pipefail
dir=$(cd "$1" && pwd)
bin=$(cd "$2" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
export PATH="$bin:$PATH" PYTHONHASHSEED=0 CMAKE_TOOLCHAIN_FILE="$here/toolchain.cmake"
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH

rm -rf "$dir/venv-build" "$dir/wheel" dist/*_aarch64.whl
mkdir -p "$dir/wheel"
"$here/venv.sh" "$dir" "$dir/venv-build"
"$dir/venv-build/bin/pip" install --quiet scikit-build-core pybind11
"$dir/venv-build/bin/pip" wheel --no-deps --no-build-isolation --wheel-dir "$dir/wheel" \
    -C cmake.define.SMOLVLA_CUDA=OFF dist/*.tar.gz >"$dir/wheel/log" 2>&1 || { cat "$dir/wheel/log" >&2; exit 1; }
auditwheel repair --zip-compression-level 9 --wheel-dir dist "$dir"/wheel/*.whl 2>>"$dir/wheel/log"
python tools/wheel/check.py dist/*.tar.gz dist/*_aarch64.whl
