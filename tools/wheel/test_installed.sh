#!/usr/bin/env bash
# Test a wheel as a user has it: test_installed.sh PYTHON [pytest's arguments]
#
# PYTHON is that of an environment the wheel was installed into. The tests run from a copy in a
# temporary directory (with benchmarks/, which some of them import), so that nothing of this source
# tree can be imported by accident, and with an environment cleared of what would lead back to it.
#
# tests/wheel/installed.py looks at the installation itself; the arguments choose the rest, with
# paths relative to this project (tests/unit).
set -euo pipefail
python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
shift
root=$(cd "$(dirname "$0")/../.." && pwd)
away=$(mktemp -d)
trap 'rm -rf "$away"' EXIT
tar -C "$root" --exclude=.venv --exclude=__pycache__ -cf - tests benchmarks pyproject.toml |
    tar -C "$away" -xf -
mkdir "$away/home"

keep=("PATH=$(dirname "$python"):/usr/local/bin:/usr/bin:/bin" "HOME=$away/home" LANG=C.UTF-8)
for name in CXX QEMU_CPU SMOLVLA_EXPECT_ISAS TMPDIR; do
    [ -z "${!name:-}" ] || keep+=("$name=${!name}")
done
cd "$away"
env -i "${keep[@]}" "$python" -m pytest -p no:cacheprovider tests/wheel/installed.py
env -i "${keep[@]}" "$python" -m pytest -p no:cacheprovider "$@"
