#!/usr/bin/env bash
# What an exec costs in the kernel, with and without the search for a trace context in its environment, by the kernel's own
# count (kernel.bpf_stats_enabled). As root; `make bench` builds what it needs. Several rounds of each, in turns.
set -euo pipefail
cd "$(dirname "$0")/../.."

binary=target/release/namespan
execs=${EXECS:-3000}
rounds=${ROUNDS:-5}
variables=${VARIABLES:-30}

before=$(sysctl -n kernel.bpf_stats_enabled)
trap 'sysctl -q kernel.bpf_stats_enabled="$before"' EXIT
sysctl -q kernel.bpf_stats_enabled=1

environment=()
for ((n = 1; n <= variables; n++)); do environment+=("VARIABLE_$n=/usr/local/share/something/of/usual/length"); done

# Nanoseconds per run of the exec program: measure [FLAG]...
measure() {
    local log pid counted
    log=$(mktemp)
    $binary run --console jsonl --runtime docker=none --no-exit "$@" >/dev/null 2>"$log" &
    pid=$!
    until grep -q watching "$log"; do kill -0 $pid || { cat "$log" >&2; exit 1; }; done
    env -i "${environment[@]}" /bin/busybox sh -c \
        "n=0; while [ \$n -lt $execs ]; do /bin/busybox true; n=\$((n + 1)); done"
    counted=$(awk '/^run_time_ns:/ { ns += $2 } /^run_cnt:/ { runs += $2 } END { printf "%.0f", ns / runs }' \
        /proc/$pid/fdinfo/*)
    kill $pid
    wait $pid
    rm "$log"
    echo "$counted"
}

median() { printf '%s\n' "$@" | sort -n | sed -n "$((($# + 1) / 2))p"; }

with=() without=()
for ((round = 0; round < rounds; round++)); do
    without+=("$(measure --no-env-context)")
    with+=("$(measure)")
done
printf 'exec, %s variables: %s ns without, %s ns with the search for a trace context (medians of %s x %s)\n' \
    "$variables" "$(median "${without[@]}")" "$(median "${with[@]}")" "$rounds" "$execs"
