#!/usr/bin/env bash
# The fastest settings that lose less than one point on two families, and the SlowFast paper's beside them on 300 held-out
# problems, one CPU thread. Half an hour of one core. Usage: tune.sh FOLDER
set -euo pipefail
folder=${1:?"usage: tune.sh FOLDER"}
export OMP_NUM_THREADS=1
for task in word_problem sudoku; do
    [ -e "$folder/$task.json" ] || unmask tune --task $task --epsilon 1 --gen-length 64 --output "$folder/$task.json" | tee "$folder/$task.txt"
    tuned=$(python -c 'import json, sys; p = json.load(open(sys.argv[1])); print(p["policy"] + "|" + p["cache"])' "$folder/$task.json")
    unmask bench --pair "$tuned" --policy slowfast --cache none --cache dllm --task $task --gen-length 64 -n 300 --batch-size 16 --threads 1 \
        --output "$folder/bench.jsonl"
done
