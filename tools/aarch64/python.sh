#!/usr/bin/env bash
# An aarch64 Python that runs here under qemu-user, made under DIR (build/aarch64):
#
#   DIR/apt/         package lists and downloads of its own: the system's packages are not touched
#   DIR/root/        Debian's Python 3.11 for arm64, its C library and its headers, unpacked
#   DIR/wheelhouse/  aarch64 wheels of what the package, its tests and its build need (PyPI)
#
# usage: python.sh DIR PIP CONSTRAINTS       PIP: a pip of this machine, which downloads the wheels
#
# venv.sh makes environments of it. Running this again makes what is missing.
set -euo pipefail
dir=$(mkdir -p "$1" && cd "$1" && pwd)
pip=$2
constraints=$(realpath "$3")

# What the interpreter and its standard library are linked with, and no more.
packages=(
    python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libpython3.11-dev
    libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libssl3 libffi8 libbz2-1.0 liblzma5 libuuid1
    libsqlite3-0 libcrypt1
)

unpack_python() {
    echo "unpacking Debian's arm64 Python 3.11 into $dir/root ..."
    rm -rf "$dir/apt" "$dir/root.part"
    mkdir -p "$dir/apt/state/lists/partial" "$dir/apt/cache/archives/partial" "$dir/apt/debs" \
        "$dir/root.part"
    : >"$dir/apt/state/status"
    local apt=(
        -o APT::Architecture=arm64 -o APT::Architectures::=arm64
        -o "Dir::State=$dir/apt/state" -o "Dir::State::status=$dir/apt/state/status"
        -o "Dir::Cache=$dir/apt/cache" -o "APT::Sandbox::User=$(id -un)"
    )
    apt-get "${apt[@]}" -qq update
    if ! (cd "$dir/apt/debs" && apt-get "${apt[@]}" -qq download "${packages[@]}"); then
        echo "expected the apt sources of this machine to have Python 3.11 for arm64, as Debian 12's" \
            "do; they do not" >&2
        exit 2
    fi
    local deb
    for deb in "$dir"/apt/debs/*.deb; do
        dpkg-deb --extract "$deb" "$dir/root.part"
    done
    # The header that includes the right one for its architecture would need a second include path.
    cp "$dir/root.part/usr/include/aarch64-linux-gnu/python3.11/pyconfig.h" \
        "$dir/root.part/usr/include/python3.11/pyconfig.h"
    rm -rf "$dir/root"
    mv "$dir/root.part" "$dir/root"
}

fetch_wheels() {
    echo "fetching aarch64 wheels into $dir/wheelhouse ..."
    rm -rf "$dir/wheelhouse.part"
    "$pip" --disable-pip-version-check download --quiet --dest "$dir/wheelhouse.part" \
        --constraint "$constraints" --only-binary=:all: --implementation cp --python-version 3.11 \
        --platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 \
        pip numpy safetensors tokenizers typer rich pytest \
        scikit-build-core pybind11
    cp "$constraints" "$dir/wheelhouse.part/constraints.txt"
    rm -rf "$dir/wheelhouse"
    mv "$dir/wheelhouse.part" "$dir/wheelhouse"
}

[ -x "$dir/root/usr/bin/python3.11" ] || unpack_python
cmp -s "$constraints" "$dir/wheelhouse/constraints.txt" || fetch_wheels
# Every module with a library of its own behind it: a missing package shows here.
qemu-aarch64 -L "$dir/root" "$dir/root/usr/bin/python3.11" -c \
    'import bz2, ctypes, hashlib, lzma, platform, sqlite3, ssl, uuid, zlib
assert platform.machine() == "aarch64", platform.machine()'
