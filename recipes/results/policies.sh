#!/usr/bin/env bash
# Measures every policy with three caches at its published defaults on 300 held-out problems of each family, one CPU thread.
# About twelve hours of one core; stopped and started again it goes on where it was. Usage: policies.sh FOLDER
set -euo pipefail
folder=${1:?"usage: policies.sh FOLDER"}
quick="threshold factor entropy_bound klass wino hierarchical credit apd learn2pd learned adaptive lookahead slowfast"
slow="vanilla left_to_right dream saber prophet"
tuned="slowfast(tau_high=0.998,window=1,suffix=cached,block_length=32)|dllm(kp=2,kr=1)"
common=(-n 300 --batch-size 16 --threads 1 --baseline -)
caches=(--cache none --cache dual --cache dllm)

policies() { printf -- '--policy %s ' "$@"; }

short=(--task word_problem --task waiting_line --task sudoku --task record --gen-length 64)
unmask bench $(policies $quick $slow) "${caches[@]}" --pair "$tuned" "${common[@]}" "${short[@]}" --output "$folder/short.jsonl"
unmask bench --pair "vanilla|prefix" --pair "threshold|prefix" --pair "slowfast|prefix" --pair "vanilla|d2" --pair "threshold|d2" \
    --pair "slowfast|d2" --pair "left_to_right(lookahead=24)|trailing" --pair "apd|trailing" --pair "threshold|every(dual,4)" \
    --pair "threshold|every(dllm,4)" "${common[@]}" "${short[@]}" --output "$folder/caches.jsonl"
multi=(--task multi --gen-length 256)
unmask bench $(policies $quick) "${caches[@]}" --pair "$tuned" "${common[@]}" "${multi[@]}" --output "$folder/multi.jsonl"
unmask bench $(policies $slow) "${caches[@]}" "${common[@]}" "${multi[@]}" --output "$folder/multi.jsonl"
