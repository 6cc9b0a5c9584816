#!/bin/sh
# HumanEval. No examples (scripts of 2506.10848, tables 1 and 2). Runs what the model writes: use a machine where that
# may be.
llada="--tasks humaneval --num-fewshot 0 --cache dllm(kp=10,kr=1,rho=0) --run-unsafe-code"
dream="--tasks humaneval --num-fewshot 0 --run-unsafe-code"
instruct="--tasks humaneval_instruct --policy vanilla(block_length=512) --gen-length 512 --run-unsafe-code"
. "$(dirname "$0")/settings.sh"
