"""Two decodings of one prompt in one picture, forward pass by forward pass.

python examples/picture.py [FILE.svg] [--prompt TEXT] [--gen-length 48]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import unmask
from unmask.viz import svg

PROMPT = (
    "Kai starts with 5 pins. Then 7 pins are added. Kai gives half of them to Ella. Kai gets 8 from Ella. "
    "How many pins are left?"
)
WAYS = (("vanilla", "none"), ("slowfast", "dllm(kp=2,kr=1)"))


def main() -> None:
    """Decode and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=Path("side_by_side.svg"))
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--gen-length", type=int, default=48)
    args = parser.parse_args()
    lm = unmask.load()
    drawn = [
        (
            policy if cache == "none" else f"{policy} + {cache}",
            lm.generate(args.prompt, args.gen_length, policy, cache)[0],
        )
        for policy, cache in WAYS
    ]
    args.file.write_text(svg(lm, drawn, animate=True), encoding="utf-8")
    print(*(f"{title}: {result.stats.nfe} forward passes" for title, result in drawn), sep="\n")


if __name__ == "__main__":
    main()
