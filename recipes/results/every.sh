#!/usr/bin/env bash
# The table of docs/results/every.md: every policy at its best setting, chosen on problems of the valid split, measured on those of the
# test split: gen_length 256, one response at a time, one CPU thread. Five hours. Goes on where
# it was stopped.
# Usage: every.sh FOLDER; N: problems of each family of the test split
set -euo pipefail
folder=${1:?"usage: every.sh FOLDER"}
here=$(dirname "$0")
pairs() { mapfile -t found < <(python "$here/every.py" "$@"); }
valid() { unmask bench --split valid "$@" --batch-size 20 --threads 1 --gen-length 256; }
pairs search
valid --task word_problem -n 8 "${found[@]}" --output "$folder/first.jsonl"
pairs search "$folder/first.jsonl"
valid -n 8 "${found[@]}" --output "$folder/valid.jsonl"
pairs curves
valid --task word_problem -n 40 "${found[@]}" --output "$folder/curves.jsonl"
pairs choose "$folder/valid.jsonl"
unmask bench -n "${N:-60}" "${found[@]}" --batch-size 1 --threads 1 --gen-length 256 --output "$folder/test.jsonl"
python "$here/every.py" page "$folder/curves.jsonl" "$folder/test.jsonl"
