#!/bin/sh
# BBH. 3 examples in chain-of-thought form (scripts of 2506.10848, tables 1 and 2). There is no published setting of
# LLaDA-8B-Instruct.
llada="--tasks bbh --num-fewshot 3 --cache dllm(kp=5,kr=1,rho=0)"
dream="--tasks bbh --num-fewshot 3"
. "$(dirname "$0")/settings.sh"
