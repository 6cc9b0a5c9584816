# What the recipes share: a model with the decoder that its published scores were made with. What a caller appends
# comes last and wins, as in: sh recipes/eval/gsm8k.sh llada --policy "vanilla(block_length=256)" --cache none
#
# llada, dream: SlowFast Sampling, arXiv 2506.10848, tables 1 and 2, with the settings of its published scripts:
#     256 tokens in one block, batch size 1; Dream at temperature 0.2, top-p 0.95, with a begin-of-text token.
# instruct: LLaDA's own evaluation (EVAL.md of its repository): one token a forward, lengths and blocks per task.
# likelihood: LLaDA's own evaluation of the base model on tasks with choices, without classifier-free guidance.

run() { exec ${UNMASK:-unmask} eval "$@"; }

llada() {
    run --model GSAI-ML/LLaDA-8B-Base --policy "slowfast(preset=reference,block_length=256)" \
        --gen-length 256 --batch-size 1 "$@"
}

dream() {
    run --model Dream-org/Dream-v0-Base-7B --policy "slowfast(preset=reference_dream,block_length=256)" \
        --gen-length 256 --batch-size 1 --temperature 0.2 --top-p 0.95 --add-bos-token "$@"
}

instruct() { run --model GSAI-ML/LLaDA-8B-Instruct --chat --batch-size 1 "$@"; }

likelihood() { run --model GSAI-ML/LLaDA-8B-Base --no-greedy-check "$@"; }

usage() {
    echo "usage: sh $0 $1 [options of unmask eval]" >&2
    exit 2
}

setting=${1-}
[ $# -eq 0 ] || shift
