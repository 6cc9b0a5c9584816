#!/usr/bin/env bash
# The table of docs/blocks.md: seven policies on unmask-tiny-block, without a cache and with blockwise, one response at a time, one CPU
# thread. Goes on where it was stopped. Usage: table.sh FILE.jsonl [more options of unmask bench]
set -euo pipefail
file=${1:?"usage: table.sh FILE.jsonl [more options of unmask bench]"}
shift
policies=(vanilla "threshold(tau=0.95)" "slowfast(tau_high=0.95,window=1)" klass wino "edit(threshold(tau=0.95))"
    "ahead(threshold(tau=0.95))" "ahead(slowfast(tau_high=0.95,window=1))")
pairs=()
for policy in "${policies[@]}"; do pairs+=(--pair "$policy|none" --pair "$policy|blockwise"); done
unmask bench --model unmask-tiny-block "${pairs[@]}" --batch-size 1 --threads 1 --gen-length 256 -n "${N:-60}" --output "$file" "$@"
