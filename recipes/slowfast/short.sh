#!/usr/bin/env bash
# SlowFast's thresholds (the paper's figure 4) and what each of its parts is for, on 300 problems of each of the four families
# with short answers, one CPU thread. Forty minutes of one core; stopped and started again it goes on. Usage: short.sh FOLDER
set -euo pipefail
folder=${1:?"usage: short.sh FOLDER"}
common=(--task word_problem --task waiting_line --task sudoku --task record --gen-length 64 -n 300 --batch-size 16 --threads 1
        --baseline -)

thresholds=()
for tau_min in 0.05 0.1 0.3 0.6; do
    for tau_high in 0.7 0.85 0.95 0.998; do thresholds+=(--policy "slowfast(tau_min=$tau_min,tau_high=$tau_high)"); done
done
unmask bench "${thresholds[@]}" "${common[@]}" --output "$folder/thresholds.jsonl"

parts=(
    "slowfast"                                  # the paper's
    "slowfast(window=1)" "slowfast(force_after=1)" "slowfast(force_after=2)" "slowfast(force_after=4)"   # no test of stability
    "slowfast(tau_min=0)"                       # no span: the whole rest
    "slowfast(tau_high=0)"                      # no certainty: all of the span at once
    "slowfast(suffix=truncate)" "slowfast(suffix=full)"
    "slowfast(signal=entropy)" "slowfast(signal=kl)"
    "slowfast(block_length=32)" "slowfast(preset=reference)"
)
unmask bench "${parts[@]/#/--policy=}" "${common[@]}" --output "$folder/parts.jsonl"
