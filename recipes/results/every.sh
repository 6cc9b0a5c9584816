#!/usr/bin/env bash
# The table of docs/results/every.md: every policy at its best setting, chosen on problems of the valid split, measured on those of the
# test split: gen_length 256, one response at a time, one CPU thread. An hour and a half. Goes on where it was stopped.
# Usage: every.sh FOLDER; N: problems of each family of the test split
set -euo pipefail
folder=${1:?"usage: every.sh FOLDER"}
here=$(dirname "$0")
mapfile -t search < <(python "$here/every.py" search)
unmask bench --split valid -n "${SEARCH:-12}" "${search[@]}" --batch-size 20 --threads 1 --gen-length 256 --output "$folder/valid.jsonl"
mapfile -t chosen < <(python "$here/every.py" choose "$folder/valid.jsonl")
unmask bench -n "${N:-60}" "${chosen[@]}" --batch-size 1 --threads 1 --gen-length 256 --output "$folder/test.jsonl"
python "$here/every.py" page "$folder/valid.jsonl" "$folder/test.jsonl"
