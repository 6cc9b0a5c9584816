#!/bin/sh
# MMLU-pro. No examples (scripts of 2506.10848, tables 1 and 2).
llada="--tasks mmlu_pro --num-fewshot 0 --cache dllm(kp=15,kr=1,rho=0)"
dream="--tasks mmlu_pro --num-fewshot 0"
instruct="--tasks mmlu_pro --policy vanilla(block_length=256) --gen-length 256"
. "$(dirname "$0")/settings.sh"
