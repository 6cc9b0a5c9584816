"""Prompts for drafters that find text again: paragraphs of the documentation, each to be summed up.

python recipes/speculate/paragraphs.py runs/paragraphs.jsonl    # then measure.py --task runs/paragraphs.jsonl -n 100
"""

import json
import random
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
LENGTH = range(250, 700)  # characters of a paragraph
MARKS = tuple("|#`<!-[*0123456789")  # with which tables, headings, code, lists and pictures begin


def paragraphs():
    """Those of all pages, line breaks taken out."""
    for page in sorted(DOCS.rglob("*.md")):
        for part in page.read_text(encoding="utf-8").split("\n\n"):
            text = " ".join(part.split())
            if len(text) in LENGTH and not text.startswith(MARKS) and "```" not in text:
                yield text


if __name__ == "__main__":
    found = sorted(set(paragraphs()))
    chosen = random.Random(0).sample(found, 100)
    lines = [json.dumps({"prompt": f"Sum up this text in two sentences.\n\n{text}", "answer": ""}) for text in chosen]
    Path(sys.argv[1]).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"100 of {len(found)} paragraphs")
