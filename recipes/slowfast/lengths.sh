#!/usr/bin/env bash
# What the exploratory phase costs on canvases of 128 to 8192 tokens; see stages.py. 300 problems up to 1024 tokens, then 32, 16, 8.
# Forty minutes of one core of an AMD EPYC (Zen 4); stopped and started again it goes on. Usage: lengths.sh FOLDER
# N: problems of each family at all lengths, to try it.
set -euo pipefail
folder=${1:?"usage: lengths.sh FOLDER"}
here=$(dirname "$0")
for one in 128:75 256:75 512:75 1024:75 2048:8 4096:4 8192:2; do
    "${PYTHON:-python}" "$here/stages.py" --canvas "${one%:*}" -n "${N:-${one#*:}}" --output "$folder/lengths.jsonl"
done
