# What the recipes share: models with the decoder that their published scores were made with. A recipe says what each
# setting has besides, as words without spaces in them, and reads this file last. What a caller appends comes after all
# that and wins, as in: sh recipes/eval/gsm8k.sh llada --policy "vanilla(block_length=256)" --cache none
#
# llada, dream: SlowFast Sampling, arXiv 2506.10848, tables 1 and 2, with the settings of its published scripts:
#     256 tokens in one block, batch size 1; Dream at temperature 0.2, top-p 0.95, with a begin-of-text token.
# long: the same, for GPQA with long responses.
# instruct: LLaDA's own evaluation (EVAL.md of its repository): one token a forward, lengths and blocks per task.
# likelihood: LLaDA's own evaluation of the base model on tasks with choices, without classifier-free guidance.
set -euf

case ${1-} in
llada | long)
    model="GSAI-ML/LLaDA-8B-Base --policy slowfast(preset=reference,block_length=256) --gen-length 256 --batch-size 1"
    ;;
dream)
    model="Dream-org/Dream-v0-Base-7B --policy slowfast(preset=reference_dream,block_length=256)
        --gen-length 256 --batch-size 1 --temperature 0.2 --top-p 0.95 --add-bos-token"
    ;;
instruct) model="GSAI-ML/LLaDA-8B-Instruct --chat --batch-size 1" ;;
likelihood) model="GSAI-ML/LLaDA-8B-Base --no-greedy-check" ;;
*) model= ;;
esac
own=
[ -z "$model" ] || eval "own=\${$1-}"
if [ -z "$own" ]; then
    known="llada${long+|long}|dream${instruct+|instruct}${likelihood+|likelihood}"
    echo "usage: sh $0 $known [options of unmask eval]" >&2
    exit 2
fi
shift
exec ${UNMASK:-unmask} eval --model $model $own "$@"
