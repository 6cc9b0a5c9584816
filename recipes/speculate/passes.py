"""What a pass of a target over some tokens costs beside one over a single token: the least processor time of many.

python recipes/speculate/passes.py                                      # the bundled causal model
python recipes/speculate/passes.py --target runs/smollm2 --rounds 12
"""

from __future__ import annotations

import argparse
import time

import torch

import unmask
from unmask import registry

COUNTS = (1, 2, 5, 6, 9, 11, 13, 17, 25, 33, 65)


def main() -> None:
    """Print a line for each dtype: tokens, milliseconds, beside one token."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", help="folder of a causal model; none: the bundled one")
    parser.add_argument("--known", type=int, default=100, help="tokens read before")
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    drafter = registry.lookup("drafter", "ngram")
    tree = __import__(drafter.__module__, fromlist=["Tree"]).Tree
    for dtype in ("float32", "bfloat16"):
        target = unmask.load_causal(options.target, dtype=dtype).target
        least = dict.fromkeys(COUNTS, float("inf"))
        with torch.inference_mode():
            target.begin(1, options.known + max(COUNTS))
            target.read([list(range(5, 5 + options.known))], None)
            target.keep([list(range(5, 5 + options.known))], [[]])
            for _ in range(options.rounds):
                for count in COUNTS:
                    drafts = None if count == 1 else tree.of([[7] * (count - 1)], None, target.device)
                    began = time.process_time()
                    target.read([[9]], drafts)
                    least[count] = min(least[count], time.process_time() - began)
        one = least[COUNTS[0]]
        print(dtype, ", ".join(f"{n}: {1000 * t:.2f} ms ({t / one:.2f})" for n, t in least.items()), flush=True)


if __name__ == "__main__":
    main()
