#!/bin/sh
# MBPP. 3 examples (scripts of 2506.10848, tables 1 and 2). Runs what the model writes: use a machine where that may be.
llada="--tasks mbpp --num-fewshot 3 --cache dllm(kp=5,kr=1,rho=0) --run-unsafe-code"
dream="--tasks mbpp --num-fewshot 3 --run-unsafe-code"
instruct="--tasks mbpp_instruct --policy vanilla(block_length=256) --gen-length 256 --run-unsafe-code"
. "$(dirname "$0")/settings.sh"
