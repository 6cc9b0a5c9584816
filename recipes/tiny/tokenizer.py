"""Build the tokenizer: byte-level, so that any text encodes, with one token for each word of the tasks.

    python recipes/tiny/tokenizer.py --out src/unmask/assets/tiny

The vocabulary is the 256 bytes, the special tokens, and every piece (word with its leading space,
run of punctuation, single digit) that the generators write. Other words are spelled byte by byte.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from unmask.tasks import FAMILIES

MASK, EOS, BOS = "<|mdm_mask|>", "<|endoftext|>", "<|startoftext|>"
USER, ASSISTANT = "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (MASK, EOS, BOS, USER, ASSISTANT)
# A word with at most one leading space, one digit, a run of punctuation, one whitespace character.
PIECES = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s"
CHAT_TEMPLATE = (
    "<|startoftext|>{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|assistant|>' + message['content'] + '<|endoftext|>' }}"
    "{% else %}{{ '<|user|>' + message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MIN_COUNT = 20


def pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Split into pieces, then write each byte as a printable character."""
    split = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def count_pieces(samples: int) -> Counter[str]:
    """How often each piece occurs in ``samples`` training problems of each family."""
    splitter, rng, counts = pre_tokenizer(), random.Random("tokenizer"), Counter[str]()
    for family in FAMILIES.values():
        for _ in range(samples):
            problem = family.generate(rng)
            if problem.split == "train":
                for text in (problem.prompt, problem.answer):
                    counts.update(piece for piece, _ in splitter.pre_tokenize_str(text))
    return counts


def build(samples: int = 6000) -> Tokenizer:
    """The tokenizer, the same one for the same generators."""
    counts = count_pieces(samples)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = sorted(piece for piece, n in counts.items() if n >= MIN_COUNT and len(piece) > 1)
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *alphabet, *words])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.pre_tokenizer = pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write ``tokenizer.json`` and the two small files that ``transformers`` reads beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS, "mask_token": MASK}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "additional_special_tokens": [USER, ASSISTANT],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", names)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Build the tokenizer of the tiny checkpoint.")
    parser.add_argument("--out", type=Path, default=Path("src/unmask/assets/tiny"))
    parser.add_argument("--samples", type=int, default=6000, help="problems of each family to count words in")
    args = parser.parse_args()
    tokenizer = build(args.samples)
    save(tokenizer, args.out)
    print(f"{tokenizer.get_vocab_size()} tokens in {args.out}")


if __name__ == "__main__":
    main()
