#!/usr/bin/env bash
# The cross compiler and the emulator for aarch64, as Debian and Ubuntu package them:
#
#   g++-aarch64-linux-gnu   compiler, binutils and C and C++ libraries (/usr/aarch64-linux-gnu)
#   qemu-user               qemu-aarch64, which runs aarch64 programs on this machine
#
# Does nothing when both are there. The recommended packages are left out on purpose: one of them
# (binfmt) would make the whole system run foreign programs, which nothing here needs.
set -euo pipefail

packages=()
command -v aarch64-linux-gnu-g++ >/dev/null || packages+=(g++-aarch64-linux-gnu)
command -v qemu-aarch64 >/dev/null || packages+=(qemu-user)
if [ ${#packages[@]} -eq 0 ]; then
    exit 0
fi

line="apt-get install --yes --no-install-recommends ${packages[*]}"
root=()
if [ "$(id -u)" -ne 0 ]; then
    root=(sudo)
fi
if ! command -v apt-get >/dev/null; then
    echo "aarch64 tests need ${packages[*]} (their names in Debian); this system has no apt-get:" \
        "install a cross compiler aarch64-linux-gnu-g++ and qemu-aarch64 yourself" >&2
    exit 2
fi
# --non-interactive: a build that waits for a password that nobody types is worse than an error.
if [ ${#root[@]} -gt 0 ] && ! sudo --non-interactive true 2>/dev/null; then
    echo "aarch64 tests need ${packages[*]}; as root:  $line" >&2
    exit 2
fi

echo "installing ${packages[*]} ..."
export DEBIAN_FRONTEND=noninteractive
# $line is split into words on purpose.
# shellcheck disable=SC2086
if ! "${root[@]}" env DEBIAN_FRONTEND=noninteractive $line >/dev/null; then
    echo "again, with fresh package lists ..."
    "${root[@]}" apt-get update >/dev/null
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive $line >/dev/null
fi
