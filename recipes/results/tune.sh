#!/usr/bin/env bash
# The fastest settings that lose less than one point on three families, and the SlowFast paper's beside them on 300 held-out
# problems, one CPU thread. Three quarters of an hour of one core. Usage: tune.sh FOLDER
set -euo pipefail
folder=${1:?"usage: tune.sh FOLDER"}
mkdir -p "$folder"
export OMP_NUM_THREADS=1
for one in word_problem:0:64 sudoku:1:64 record:0:256; do
    IFS=: read -r task seed length <<< "$one"
    profile=$folder/$task.json
    [ -e "$profile" ] || unmask tune --task "$task" --seed "$seed" --epsilon 1 --gen-length "$length" --output "$profile"
    tuned=$(python -c 'import json, sys; p = json.load(open(sys.argv[1])); print(p["policy"] + "|" + p["cache"])' "$profile")
    unmask bench --pair "$tuned" --policy slowfast --cache none --cache dllm --task "$task" --gen-length "$length" -n 300 --batch-size 16 \
        --threads 1 --output "$folder/$task.jsonl"
done
