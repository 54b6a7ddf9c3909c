#!/usr/bin/env bash
# Installs the given Debian packages as root; otherwise says what to type.
set -euo pipefail
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "The simulator draws with software EGL. Debian, Ubuntu: sudo apt-get install -y $*" >&2
    exit 2
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null
