#!/bin/sh
# Make the rival's own environment: LeRobot 0.4.4 and what its SmolVLA imports, CPU only.
#   benchmarks/rivals/lerobot/install.sh [python3.11]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${1:-python3}
venv=${RIVAL_VENV:-$here/.venv}

"$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }

# On PyPI torch 2.13 for Linux may be a CUDA build on some mirrors: PyTorch's own CPU index is the
# fallback to name in TORCH_INDEX (https://download.pytorch.org/whl/cpu).
if [ -n "${TORCH_INDEX:-}" ]; then
    pip install torch==2.13.0 --index-url "$TORCH_INDEX"
else
    pip install torch==2.13.0
fi
pip install --no-deps --requirement "$here/requirements.txt"

# Fails here, not in the middle of a benchmark, when something is missing.
cd "$here"
"$venv/bin/python" -c 'import build; print("ready:", build.versions())'
