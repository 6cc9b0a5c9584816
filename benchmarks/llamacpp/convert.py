"""Run llama.cpp's own converter on a checkpoint whose tokenizer it does not know.

    python -m benchmarks.llamacpp.convert LLAMA_CPP FOLDER FILE.gguf [--outtype bf16] [--pre llama-bpe]

llama.cpp recognises a tokenizer by a hash of what it makes of a text, and refuses those that are not in its list;
``--pre`` says which of its rules to use. A folder without tokenizer gets one of single characters, and a tokenizer
without merges gets one: llama.cpp loads none without. All else is its own code.
"""

from __future__ import annotations

import argparse
import json
import runpy
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

CHARACTERS = [chr(i) for i in range(33, 127)] + [chr(i) for i in range(161, 173)]  # of GPT-2's alphabet of bytes


def prepared(folder: Path, into: Path) -> Path:
    """A copy of a checkpoint's folder with a tokenizer that llama.cpp can load."""
    shutil.copytree(folder, into, dirs_exist_ok=True)
    config = (into / "config.json").read_text(encoding="utf-8")
    (into / "config.json").write_text(config.replace('"RND1LM"', '"RND1"'), encoding="utf-8")  # its name for it
    file = into / "tokenizer.json"
    if not file.exists():
        _characters(into)
    table = json.loads(file.read_text(encoding="utf-8"))
    if not table["model"]["merges"]:
        vocab = table["model"]["vocab"]
        pairs = ([t[:i], t[i:]] for t in sorted(vocab) for i in range(1, len(t)) if t[:i] in vocab and t[i:] in vocab)
        table["model"]["merges"] = [next(pairs)]
        file.write_text(json.dumps(table), encoding="utf-8")
    return into


def _characters(folder: Path) -> None:
    """Write a tokenizer of single characters, two of which make a third, and the control tokens of the config."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    size = config.get("embedding_size", config["vocab_size"])
    roles = {role: config[f"{role}_token_id"] for role in ("mask", "eos") if config.get(f"{role}_token_id") is not None}
    free = [i for i in range(size) if i not in roles.values()]
    vocab = dict(zip([*CHARACTERS, "ab"], free, strict=False))
    vocab["ab"] = free[min(len(free), len(vocab)) - 1]
    control = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    vocab |= {f"<|{role}|>": i for role, i in roles.items()}
    added = [{"id": i, "content": f"<|{role}|>", **control} for role, i in roles.items()]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    table: dict[str, Any] = {
        "version": "1.0", "added_tokens": sorted(added, key=lambda token: token["id"]), "normalizer": None,
        "pre_tokenizer": level, "post_processor": None, "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": [["a", "b"]]},
    }  # fmt: skip
    named = {f"{role}_token": f"<|{role}|>" for role in roles}
    (folder / "tokenizer.json").write_text(json.dumps(table), encoding="utf-8")
    named["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")


def convert(source: Path, folder: Path, file: Path, outtype: str = "bf16", pre: str = "llama-bpe") -> None:
    """Run the converter of the llama.cpp in ``source``, in this process."""
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    from conversion.base import TextModel  # type: ignore[import-not-found]

    TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
    with tempfile.TemporaryDirectory() as copy:
        made = prepared(folder, Path(copy) / folder.name)
        sys.argv = ["convert_hf_to_gguf.py", str(made), "--outfile", str(file), "--outtype", outtype]
        runpy.run_path(str(source / "convert_hf_to_gguf.py"), run_name="__main__")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of llama.cpp's source")
    parser.add_argument("folder", type=Path, help="the checkpoint")
    parser.add_argument("file", type=Path)
    parser.add_argument("--outtype", default="bf16", help="f32, f16, bf16 or q8_0")
    parser.add_argument("--pre", default="llama-bpe", help="which of llama.cpp's rules splits texts")
    given = parser.parse_args()
    convert(given.source, given.folder, given.file, given.outtype, given.pre)
