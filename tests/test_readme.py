"""Every example of the documentation prints what stands below it; the three of CONTRIBUTING do what they say."""

import json
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import save_file

import unmask
from docpages import examples, fits
from helpers import cli, fine
from llada_folder import CONFIG, EOS, MASK, weights, write
from refusals import refuses
from unmask import Outcome, Request, Result, SamplingParams, Span, Stats, Step
from unmask.core.errors import SpecError
from unmask.models import weights as checkpoints
from unmask.models.config import Config
from unmask.tasks import FAMILIES

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
RUN = [
    "README.md",
    "docs/blocks.md",
    "docs/chat.md",
    "docs/cli.md",
    "docs/python.md",
    "docs/quantize.md",
    "docs/speculate.md",
    "docs/structured.md",
]
OWN = ["CONTRIBUTING.md", "docs/eval.md", "docs/serve.md", "docs/trace.md"]  # have tests of their own


def text(page):
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", RUN)
def test_examples_print_what_the_page_shows(page, tmp_path, monkeypatch, capsys, shell):
    monkeypatch.chdir(tmp_path)
    found, names = examples(text(page), "sh", "python"), {"__name__": "example"}
    for one in found:
        if one.kind == "sh":
            done = shell(one.code, tmp_path)
            assert (done.returncode, done.stderr) == (0, ""), one.code
            printed = done.stdout
        else:
            exec(compile(one.code, page, "exec"), names)
            printed = capsys.readouterr().out
        assert fits(one.output or "", printed), f"{page}:\n{one.code}prints\n{printed}not\n{one.output}"


def test_every_example_is_run_and_shows_its_output():
    """Or says why not."""
    found = {page: examples(text(page), "sh", "python") for page in PAGES}
    assert sorted(page for page, several in found.items() if several) == sorted(RUN + OWN)
    assert not [one.code for page in RUN for one in found[page] if not one.output]
    assert len(text("README.md").splitlines()) <= 150


@pytest.mark.parametrize(
    ("expected", "output", "same"),
    [
        ("a\nb\n", "a\nb\n", True),
        ("a\nb\n", "a\nc\n", False),
        ("a …s\n", "a 0.25 s\n", True),
        ("a …s\n", "a\n0.25 s\n", False),
        ("a\n…\nz\n", "a\nb\nc\nz\n", True),
        ("a\n…\nz\n", "a\nb\n", False),
        ("1.5\n", "1x5\n", False),
        ("", "a\n", False),
    ],
)
def test_comparison(expected, output, same):
    assert fits(expected, output) is same


def example(name, *args, monkeypatch):
    """Run the main of a script in examples/."""
    monkeypatch.setattr(sys, "argv", [name, *args])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


@pytest.mark.slow
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
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text(page)):
            if "://" not in target:
                assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("command", ["generate", "infill", "chat"])
def test_options_are_documented(command):
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    text = fine(cli(command, "--help"))
    missing = {o for o in re.findall(r"--[a-z][a-z-]+", text) if f"`{o}" not in page} - {"--help"}
    assert not missing


def test_python_page_names_every_field():
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    for cls in (Result, Span, Stats, Step, SamplingParams, Request, Outcome):
        for name in cls.__dataclass_fields__:
            assert f"`{name}`" in page, f"{cls.__name__}.{name}"


def contributed():
    """What the three examples of CONTRIBUTING.md define."""
    names = {}
    for code in (one.code for one in examples(text("CONTRIBUTING.md"), "python")):
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
    with refuses(SpecError, "surest", "k", 0):
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
