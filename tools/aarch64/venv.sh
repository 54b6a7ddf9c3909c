#!/usr/bin/env bash
# Make a virtual environment of the aarch64 Python: venv.sh DIR VENV
#
# DIR is what python.sh made. VENV/bin/python is a script that starts the interpreter under qemu and
# tells it that the script is its name, so that sys.executable can be started again by programs of
# both architectures: nothing has to be registered with the kernel. pip is in it and sees the
# wheelhouse only.
set -euo pipefail
dir=$(cd "$1" && pwd)
venv=$(mkdir -p "$2/bin" && cd "$2" && pwd)

cat >"$venv/pyvenv.cfg" <<END
home = $dir/root/usr/bin
include-system-site-packages = false
version = 3.11
END
cat >"$venv/bin/python" <<END
#!/bin/sh
exec qemu-aarch64 -L "$dir/root" -0 "$venv/bin/python" "$dir/root/usr/bin/python3.11" "\$@"
END
chmod +x "$venv/bin/python"
mkdir -p "$venv/lib/python3.11/site-packages"
wheel=$(echo "$dir"/wheelhouse/pip-*.whl)
"$venv/bin/python" "$wheel/pip" --isolated --quiet install --no-index --no-compile "$wheel"
# In the environment, where it wins over whatever this machine configures for its own pip.
cat >"$venv/bin/pip" <<END
#!/bin/sh
export PIP_CONFIG_FILE=/dev/null PIP_NO_INDEX=1 PIP_FIND_LINKS="$dir/wheelhouse"
export PIP_NO_COMPILE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
exec "$venv/bin/python" -m pip "\$@"
END
chmod +x "$venv/bin/pip"
