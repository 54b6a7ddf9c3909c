#!/usr/bin/env bash
# Install this machine's wheel of dist/ into a new environment outside the tree and test it there:
#
#   test_fresh.sh PYTHON [pytest's arguments]      PYTHON: of the version the wheel is for
set -euo pipefail
python=$1
shift
root=$(cd "$(dirname "$0")/../.." && pwd)
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"$python" -m venv "$venv"
wheel=$(echo "$root/dist/"*"_$(uname -m).whl")
echo "installing $(basename "$wheel") into $venv ..."
"$venv/bin/python" -m pip --disable-pip-version-check --quiet install \
    --constraint "$root/constraints.txt" "$wheel[test,viz]"
"$root/tools/wheel/test_installed.sh" "$venv/bin/python" "$@"
