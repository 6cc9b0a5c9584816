#!/bin/sh
# GSM8K. llada: 4 examples, dream: 8 in chain-of-thought form (scripts of 2506.10848, tables 1 and 2).
llada="--tasks gsm8k --num-fewshot 4 --cache dllm(kp=15,kr=1,rho=0)"
dream="--tasks gsm8k_cot --num-fewshot 8"
instruct="--tasks gsm8k --policy vanilla(block_length=8) --gen-length 256"
. "$(dirname "$0")/settings.sh"
