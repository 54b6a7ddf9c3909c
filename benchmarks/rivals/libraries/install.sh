#!/bin/sh
# Make the environment of `python -m benchmarks.libraries`: torch (oneDNN, MKL) and ONNX Runtime.
#   benchmarks/rivals/libraries/install.sh [python3.11]
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
"$venv/bin/python" -c 'import worker; print("ready:", worker.versions())'
