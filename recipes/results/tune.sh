#!/usr/bin/env bash
# The fastest settings that lose less than one point on two families, and the SlowFast paper's beside them on 300 held-out
# problems, one CPU thread. Half an hour of one core. Usage: tune.sh FOLDER
set -euo pipefail
folder=${1:?"usage: tune.sh FOLDER"}
mkdir -p "$folder"
export OMP_NUM_THREADS=1
for one in word_problem:0 sudoku:1; do
    task=${one%:*} profile=$folder/${one%:*}.json
    [ -e "$profile" ] || unmask tune --task "$task" --seed "${one#*:}" --epsilon 1 --gen-length 64 --output "$profile"
    tuned=$(python -c 'import json, sys; p = json.load(open(sys.argv[1])); print(p["policy"] + "|" + p["cache"])' "$profile")
    unmask bench --pair "$tuned" --policy slowfast --cache none --cache dllm --task "$task" --gen-length 64 -n 300 --batch-size 16 \
        --threads 1 --output "$folder/$task.jsonl"
done
