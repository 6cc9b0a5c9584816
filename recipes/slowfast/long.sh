#!/usr/bin/env bash
# SlowFast with long responses, batch size 1, one CPU thread, problems of all five families. Stopped and started again it goes on.
# Usage: long.sh FOLDER [PART ...]     all parts unless some are named; hours are of one core of an AMD EPYC (Zen 4)
#   1024    the headline at gen_length 1024, beside threshold + dual and an autoregressive model: 2 hours
#   256     the same at gen_length 256: half an hour
#   suffix  what lies behind the span at gen_length 1024: truncated, cached, recomputed: twenty minutes
# N: problems of each family (60, in suffix 30). FULL: of those, decoded by vanilla as published too, which fills all of
# gen_length: each of its forwards costs the same, so that few tell its speed (1 at 1024, which takes 17 of the minutes; 4 at 256).
set -euo pipefail
folder=${1:?"usage: long.sh FOLDER [1024|256|suffix ...]"}
shift
tuned="slowfast(tau_high=0.998,window=1,suffix=cached,block_length=32)"
common=(--batch-size 1 --threads 1)

headline() {  # gen_length, problems of each family by vanilla as published
    local file=(--gen-length "$1" --output "$folder/headline-$1.jsonl")
    unmask bench --pair "$tuned|none" --pair "$tuned|dllm(kp=2,kr=1)" --pair "slowfast|none" --pair "slowfast|dllm" \
        --pair "threshold|dual" --autoregressive shipped -n "${N:-60}" "${common[@]}" "${file[@]}"
    unmask bench --pair "vanilla|none|full" --baseline - -n "$2" "${common[@]}" "${file[@]}"
}

(($#)) || set -- 1024 256 suffix
for part in "$@"; do
    case $part in
    1024) headline 1024 "${FULL:-1}" ;;
    256) headline 256 "${FULL:-4}" ;;
    suffix)
        unmask bench --policy "slowfast(suffix=truncate)" --policy "slowfast(suffix=cached)" --policy "slowfast(suffix=full)" \
            --policy "${tuned/cached/truncate}" --policy "$tuned" --policy "${tuned/cached/full}" --baseline - \
            --gen-length 1024 -n "${N:-30}" "${common[@]}" --output "$folder/suffix.jsonl" ;;
    *) echo "unknown part $part; accepted: 1024, 256, suffix" >&2; exit 2 ;;
    esac
done
