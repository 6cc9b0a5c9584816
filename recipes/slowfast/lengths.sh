#!/usr/bin/env bash
# What the exploratory phase costs on canvases of 128 to 8192 tokens, 300 problems on each; see stages.py. With the paper's defaults the
# three suffixes decode alike (the span is all that is left), so that beyond 1024 tokens one of them is enough.
# Eighty minutes of one thread of an AMD EPYC (Zen 5), fifty of them at 8192; stopped and started again it goes on.
# Usage: lengths.sh FOLDER [CANVAS ...]
# N: problems of each family, to try it (75).
set -euo pipefail
folder=${1:?"usage: lengths.sh FOLDER [CANVAS ...]"}
shift
here=$(dirname "$0")
tuned="slowfast(tau_high=0.998,window=1,block_length=32)"
(($#)) || set -- 128 256 512 1024 2048 4096 8192
for canvas in "$@"; do
    policies=()
    ((canvas <= 1024)) || policies=(--policy slowfast --policy "$tuned" --policy "lookahead($tuned,64)")
    "${PYTHON:-python}" "$here/stages.py" --canvas "$canvas" -n "${N:-75}" "${policies[@]}" --output "$folder/lengths.jsonl"
done
