#!/bin/sh
# MATH. 4 examples (scripts of 2506.10848, tables 1 and 2).
llada="--tasks minerva_math --num-fewshot 4 --cache dllm(kp=15,kr=1,rho=0)"
dream="--tasks minerva_math --num-fewshot 4"
instruct="--tasks minerva_math --policy vanilla(block_length=64) --gen-length 512"
. "$(dirname "$0")/settings.sh"
