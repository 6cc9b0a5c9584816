#!/usr/bin/env bash
# What the exploratory phase costs on canvases of 128 to 8192 tokens, 300 problems on each; see stages.py.
# Eighty minutes of one thread of an AMD EPYC (Zen 5), fifty of them at 8192; stopped and started again it goes on.
# Usage: lengths.sh FOLDER [CANVAS ...]
# N: problems of each family, to try it (75).
set -euo pipefail
folder=${1:?"usage: lengths.sh FOLDER [CANVAS ...]"}
shift
here=$(dirname "$0")
(($#)) || set -- 128 256 512 1024 2048 4096 8192
for canvas in "$@"; do
    "${PYTHON:-python}" "$here/stages.py" --canvas "$canvas" -n "${N:-75}" --output "$folder/lengths.jsonl"
done
