#!/bin/sh
# MMLU. 5 examples, answers generated (scripts of 2506.10848, tables 1 and 2). likelihood: choices of one token, whose
# bound is exact with one mask.
llada="--tasks mmlu_generative --num-fewshot 5 --cache dllm(kp=15,kr=1,rho=0)"
dream="--tasks mmlu_generative --num-fewshot 5"
instruct="--tasks mmlu_generative --policy vanilla(block_length=3) --gen-length 3"
likelihood="--tasks mmlu --num-fewshot 5 --mc-num 1"
. "$(dirname "$0")/settings.sh"
