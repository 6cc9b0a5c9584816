"""Every example of the documentation runs; the three of CONTRIBUTING do what they say."""

import json
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import save_file

import unmask
from helpers import cli, fine
from llada_folder import CONFIG, EOS, MASK, weights, write
from unmask.core.errors import SpecError
from unmask.models import weights as checkpoints
from unmask.models.config import Config
from unmask.tasks import FAMILIES

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>[^>]+) -->\n)?^```(?P<kind>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


def blocks(page, kind):
    """The code of a page's blocks of one kind that are to be run."""
    found = _BLOCK.finditer((ROOT / page).read_text(encoding="utf-8"))
    return [m["code"] for m in found if m["kind"] == kind and not m["why"]]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python") and p != "CONTRIBUTING.md"])
def test_python_examples(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for code in blocks(page, "python"):
        exec(compile(code, page, "exec"), {"__name__": "example"})
    assert capsys.readouterr().out


def test_command_examples(tmp_path, shell):
    scripts = blocks("README.md", "sh")
    assert sum(script.count("unmask ") for script in scripts) >= 6
    for script in scripts:
        done = shell(script, tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), script
    assert (tmp_path / "decoding.svg").read_text().startswith("<svg")
    assert [json.loads(line)["index"] for line in sorted((tmp_path / "answers.jsonl").read_text().splitlines())] == [
        0,
        1,
    ]
    assert (tmp_path / "trace.jsonl").read_text().count("\n") > 3


def test_commands_of_the_documentation(tmp_path, shell):
    stop, infill = blocks("docs/cli.md", "sh")
    done = shell(stop + infill, tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "11*2=22\n3+4=7\n7+5=12\nAnswer: 12\n")


def example(name, *args, monkeypatch):
    """Run the main of a script in examples/."""
    monkeypatch.setattr(sys, "argv", [name, *args])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


def test_demo(monkeypatch, capsys):
    example("demo.py", "--gen-length", "48", "--published", monkeypatch=monkeypatch)
    out = capsys.readouterr().out
    for family in FAMILIES:
        assert family in out
    assert [line.split()[-1] for line in out.splitlines() if line.startswith("vanilla ")] == ["1.0x"]
    assert re.search(r"slowfast \+ dllm +\d of 5 +\d+ +[\d.]+ +\d+ +[\d.]+x", out)
    assert re.search(r"no early stop +\d of 5 +240 ", out)


def test_picture_example(tmp_path, monkeypatch, capsys):
    example("picture.py", str(tmp_path / "p.svg"), "--gen-length", "16", monkeypatch=monkeypatch)
    assert (tmp_path / "p.svg").read_text().count("<title>vanilla; slowfast + dllm(kp=2,kr=1)</title>") == 1
    assert capsys.readouterr().out.startswith("vanilla: ")


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text(encoding="utf-8")):
            if "://" not in target:
                assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("command", ["generate", "infill"])
def test_options_are_documented(command):
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    text = fine(cli(command, "--help"))
    missing = {o for o in re.findall(r"--[a-z][a-z-]+", text) if f"`{o}" not in page} - {"--help"}
    assert not missing


def test_python_page_names_every_field():
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    for cls in (unmask.Result, unmask.Span, unmask.Stats, unmask.Step):
        for name in cls.__dataclass_fields__:
            assert f"`{name}`" in page, f"{cls.__name__}.{name}"


def contributed():
    """What the three examples of CONTRIBUTING.md define."""
    names = {}
    for code in blocks("CONTRIBUTING.md", "python"):
        module = SimpleNamespace(__name__="contributed")
        sys.modules["contributed"] = module  # dataclasses look their module up
        try:
            exec(compile(code, "CONTRIBUTING.md", "exec"), module.__dict__)
        finally:
            del sys.modules["contributed"]
        names |= module.__dict__
    return SimpleNamespace(**names)


def test_contributed_policy(tmp_path):
    surest = contributed().Surest
    lm = unmask.load(write(tmp_path / "m"))
    results = lm.generate(["Hello", "Hi"], [12, 9], policy=surest(k=3), cache="dual", ignore_eos=True)
    assert [r.stats.nfe for r in results] == [4, 3]
    assert str(surest(k=3)) == "surest(k=3)"
    with pytest.raises(SpecError, match=r"surest: k must be an integer >= 1, got 0"):
        surest(k=0)


def test_contributed_cache(tmp_path):
    cache = contributed().FrozenPrompt()
    lm = unmask.load(write(tmp_path / "m"), dtype="float64")
    (result,) = lm.generate("Hello", 10, "vanilla", cache, ignore_eos=True)
    assert result.stats.positions == len(result.prompt_tokens) + 10 * 10
    prompts, lengths = ["Hello", "Something longer"], [10, 16]
    together = lm.generate(prompts, lengths, "threshold(0.2)", cache)
    alone = [lm.generate(p, n, "threshold(0.2)", cache)[0] for p, n in zip(prompts, lengths, strict=True)]
    assert [r.tokens for r in together] == [r.tokens for r in alone]
    every = unmask.registry.cache("every(dual,1)")
    fresh = type(every)(cache, 1)
    assert lm.generate("Hello", 10, "vanilla", fresh)[0].tokens == lm.generate("Hello", 10, "vanilla")[0].tokens


def test_contributed_family(tmp_path, monkeypatch):
    family = contributed().Renamed()
    monkeypatch.setattr(checkpoints, "FAMILIES", (*checkpoints.FAMILIES, family))
    original = write(tmp_path / "llada")
    config = {
        "architectures": ["RenamedForMaskedDiffusion"],
        "hidden_size": CONFIG["d_model"],
        "num_hidden_layers": CONFIG["n_layers"],
        "num_attention_heads": CONFIG["n_heads"],
        "intermediate_size": CONFIG["mlp_hidden_size"],
        "vocab_size": CONFIG["embedding_size"],
        "max_position_embeddings": CONFIG["max_sequence_length"],
        "mask_token_id": MASK,
        "eos_token_id": EOS,
    }
    folder = tmp_path / "renamed"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_bytes((original / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_bytes((original / "tokenizer_config.json").read_bytes())
    arch = family.describe(Config(config, family.name)).arch
    llada = checkpoints.FAMILIES[0].names(arch)
    tensors = weights(CONFIG)
    save_file(
        {theirs: tensors[llada[ours]] for ours, theirs in family.names(arch).items()}, folder / "model.safetensors"
    )
    one, other = (unmask.load(path).generate("Hello", 12, "vanilla")[0] for path in (original, folder))
    assert one.tokens == other.tokens
