#!/bin/sh
# MBPP. 3 examples (scripts of 2506.10848, tables 1 and 2). Runs what the model writes: use a machine where that may be.
set -eu
. "$(dirname "$0")/settings.sh"

case $setting in
llada) llada --tasks mbpp --num-fewshot 3 --cache "dllm(kp=5,kr=1,rho=0)" --run-unsafe-code "$@" ;;
dream) dream --tasks mbpp --num-fewshot 3 --run-unsafe-code "$@" ;;
instruct) instruct --tasks mbpp_instruct --policy "vanilla(block_length=256)" --gen-length 256 --run-unsafe-code "$@" ;;
*) usage "llada|dream|instruct" ;;
esac
