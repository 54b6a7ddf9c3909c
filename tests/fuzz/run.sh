#!/usr/bin/env bash
# Fuzzes every target for a share of FUZZ_SECONDS; `make fuzz` calls it with the tools in place.
# What is learnt stays in build/fuzz/corpus for the next run; findings go to build/fuzz/findings.
set -uo pipefail
cd "$(dirname "$0")/../.."
python=$1
engine=$2
seconds=${FUZZ_SECONDS:-300}

kept=tests/fuzz/corpus
learnt=build/fuzz/corpus
findings=build/fuzz/findings
mkdir -p "$findings"
failed=0

# target, its share of the time in percent, command
round() {
    local target=$1 share=$2
    shift 2
    local time=$((seconds * share / 100))
    mkdir -p "$learnt/$target"
    local log=build/fuzz/$target.log
    # -timeout is for hangs, not for slowness: the machine may be busy.
    if "$@" "$learnt/$target" "$kept/$target" -max_total_time=$((time > 0 ? time : 1)) \
        -timeout=120 -report_slow_units=60 -rss_limit_mb=2048 -max_len=20000 -len_control=0 \
        -artifact_prefix="$findings/$target-" -print_final_stats=1 >"$log" 2>&1; then
        local runs coverage
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        coverage=$(grep -o 'cov: [0-9]*' "$log" | tail -1)
        echo "fuzz $target: $runs inputs in ${time} s, $coverage, no finding"
    else
        failed=1
        tail -n 60 "$log"
        echo "fuzz $target: FAILED; the whole log is in $log, findings in $findings"
    fi
}

round bundle 25 "$python" tests/fuzz/fuzz.py bundle
round checkpoint 25 "$python" tests/fuzz/fuzz.py checkpoint
round shards 5 "$python" tests/fuzz/fuzz.py shards
round inputs 5 "$python" tests/fuzz/fuzz.py inputs
round export 10 "$python" tests/fuzz/fuzz.py export
round engine 30 "$engine"
exit $failed
