#!/bin/sh
# GPQA, main set. llada: 5 examples (script of 2506.10848, table 1). long: 8 examples and 1024 tokens, the setting of
# its 34.22x (and, without the cache, of its 15.63x). likelihood: 5 examples, 128 masks. The script named after GPQA for
# Dream runs GSM8K; dream: 5 examples here.
llada="--tasks gpqa_main_generative_n_shot --num-fewshot 5 --cache dllm(kp=15,kr=5,rho=0.25)"
long="--tasks gpqa_main_generative_n_shot --num-fewshot 8 --cache dllm(kp=500,kr=30)
    --policy slowfast(preset=reference,block_length=1024) --gen-length 1024"
dream="--tasks gpqa_main_generative_n_shot --num-fewshot 5"
instruct="--tasks gpqa_main_generative_n_shot --policy vanilla(block_length=64) --gen-length 64"
likelihood="--tasks gpqa_main_n_shot --num-fewshot 5 --mc-num 128"
. "$(dirname "$0")/settings.sh"
