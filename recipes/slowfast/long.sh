#!/usr/bin/env bash
# SlowFast on problems of all five families, long responses, one CPU thread. Stopped and started again it goes on.
# Usage: long.sh FOLDER [PART ...]     all parts unless some are named; minutes are of one thread of an AMD EPYC (Zen 5)
#   blocks  the thresholds and parts of short.sh with blocks of 32 tokens, on answers that fill several: an hour
#   suffix  what lies behind the span at gen_length 1024: truncated, cached, recomputed: twelve minutes
#   256     the headline at gen_length 256, beside threshold + dual and an autoregressive model: half an hour
#   1024    the same at gen_length 1024: two hours
# N: problems of each family (60; blocks, which has one, 300). FULL: of those, decoded by vanilla as published too, which fills
# all of gen_length and takes a minute for a problem at 1024 (60 at 256, 10 at 1024).
set -euo pipefail
folder=${1:?"usage: long.sh FOLDER [blocks|suffix|256|1024 ...]"}
shift
tuned="slowfast(tau_high=0.998,window=1,suffix=cached,block_length=32)"
near="lookahead($tuned,64)"  # the block and as much again
common=(--batch-size 1 --threads 1)
n=${N:-60}

headline() {  # gen_length, problems of each family by vanilla as published, more settings
    local all=(--pair "$tuned|none" --pair "$tuned|dllm(kp=2,kr=1)" --pair "$near|none" --pair "$near|dllm(kp=2,kr=1)"
        --pair "slowfast|none" --pair "slowfast|dllm" --pair "threshold|none" --pair "threshold|dual" "${@:3}"
        --autoregressive unmask-tiny "${common[@]}" --gen-length "$1" --output "$folder/headline-$1.jsonl")
    unmask bench "${all[@]}" --pair "vanilla|none|full" -n "$2"  # all settings take turns on the same problems
    unmask bench "${all[@]}" -n "$n"
}

blocks() {
    local settings=() part
    for tau_min in 0.05 0.1 0.3 0.6; do
        for tau_high in 0.7 0.85 0.95 0.998; do settings+=(--policy "slowfast(block_length=32,tau_min=$tau_min,tau_high=$tau_high)"); done
    done
    for part in window=1 force_after=4 tau_min=0 tau_high=0 suffix=truncate suffix=full signal=entropy signal=kl; do
        settings+=(--policy "slowfast(block_length=32,$part)")
    done
    unmask bench "${settings[@]}" --baseline - --task multi --gen-length 256 -n "${N:-300}" --batch-size 16 --threads 1 \
        --output "$folder/blocks.jsonl"
}

suffix() {
    unmask bench --policy "slowfast(suffix=truncate)" --policy "slowfast(suffix=cached)" --policy "slowfast(suffix=full)" \
        --policy "${tuned/cached/truncate}" --policy "$tuned" --policy "${tuned/cached/full}" --baseline - \
        --gen-length 1024 -n "$n" "${common[@]}" --output "$folder/suffix.jsonl"
}

(($#)) || set -- blocks suffix 256 1024
for part in "$@"; do
    case $part in
    blocks) blocks ;;
    suffix) suffix ;;
    256) headline 256 "${FULL:-$n}" ;;
    1024) headline 1024 "${FULL:-$((n < 10 ? n : 10))}" --pair "lookahead(vanilla,64)|none" ;;
    *) echo "unknown part $part; accepted: blocks, suffix, 256, 1024" >&2; exit 2 ;;
    esac
done
