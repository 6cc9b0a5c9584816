#!/usr/bin/env bash
# The table of docs/results/every.md: every policy at its best setting, chosen on problems of the valid split, measured on those of the
# test split. Answers are decoded in batches on DEVICE (cuda: ten minutes; cpu: a day), times taken one response at a time on one CPU
# thread (an hour). Goes on where it was stopped.
# Usage: [DEVICE=cuda] every.sh FOLDER
set -euo pipefail
folder=${1:?"usage: every.sh FOLDER"}
here=$(dirname "$0")
pairs() { mapfile -t found < <(python "$here/every.py" "$@"); }
answers() { unmask bench "$@" --gen-length 256 --device "${DEVICE:-cpu}" --cuda-graphs off; }
valid() { answers --split valid -n 60 --batch-size 60 "$@" --output "$folder/valid.jsonl"; }
pairs search
valid --task multi --task word_problem "${found[@]}"
pairs shortlist "$folder/valid.jsonl"
valid "${found[@]}"
pairs choose "$folder/valid.jsonl"
answers -n 300 --batch-size 300 "${found[@]}" --output "$folder/test.jsonl"
unmask bench -n 20 --batch-size 1 --device cpu --threads 1 --gen-length 256 "${found[@]}" --output "$folder/speed.jsonl"
python "$here/every.py" page "$folder/valid.jsonl" "$folder/speed.jsonl" "$folder/test.jsonl"
