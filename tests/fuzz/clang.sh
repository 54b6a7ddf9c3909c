#!/usr/bin/env bash
# Prints a clang++ that links libFuzzer, installing one where that needs no password.
set -euo pipefail

works() {
    command -v "$1" >/dev/null || return 1
    local out
    out=$(mktemp)
    echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }' |
        "$1" -x c++ -fsanitize=fuzzer,address - -o "$out" 2>/dev/null
    local status=$?
    rm -f "$out"
    return $status
}

candidates=("${CLANGXX:-}" clang++ clang++-{21,20,19,18,17,16,15,14})
for candidate in "${candidates[@]}"; do
    if [[ -n $candidate ]] && works "$candidate"; then
        echo "$candidate"
        exit
    fi
done
if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    apt-get update >&2 || true  # a new machine has no lists; an old list may do
    for version in 14 18 19; do
        if apt-get install -y --no-install-recommends \
            "clang-$version" "libclang-rt-$version-dev" >&2 && works "clang++-$version"; then
            echo "clang++-$version"
            exit
        fi
    done
fi
echo 'make fuzz: no clang with libFuzzer. Debian, Ubuntu: sudo apt install clang-14' \
    'libclang-rt-14-dev; or name one: make fuzz CLANGXX=...' >&2
exit 2
