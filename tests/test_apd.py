"""Adaptive Parallel Decoding against a naive version of it, its laws, and verifiers that do not fit."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import unmask
from helpers import LIMIT, MASK, SHIFTS, VERIFIER, Request, Row, decode, forward, tiny, trail
from refusals import refuses
from unmask import api, registry
from unmask.core.predict import gumbel
from unmask.models import causal
from unmask.models.denoiser import Denoiser

PROMPTS = [[1, 2, 3], [4], [20, 21, 22, 23, 24, 25, 26]]


def spec(r: float, lookahead: int | str = "none", preset: str = "paper") -> str:
    return f'apd(r={r},lookahead={lookahead},preset={preset},verifier="{VERIFIER}")'


def one(policy: str, prompt: list[int], shift: bool = False, **sampling: float) -> Row:
    request = Request(0, prompt, 15, ignore_eos=True, **sampling)  # type: ignore[arg-type]
    return decode(tiny(shift), policy, "none", [request])[0]


@cache
def judge() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(VERIFIER).double().eval()


def forbidden(logits: Tensor) -> Tensor:
    logits[:, MASK], logits[:, LIMIT:] = -torch.inf, -torch.inf
    return logits


class Naive:
    """One row, everything computed anew in every forward."""

    def __init__(self, prompt: list[int], shift: bool, temperature: float, seed: int) -> None:
        self.tokens, self.shift, self.temperature, self.seed = prompt + [MASK] * 15, shift, temperature, seed
        self.commits: list[frozenset[tuple[int, int]]] = []

    def run(self, r: float, lookahead: int, preset: str) -> Naive:
        while MASK in self.tokens:
            self.forward(r, lookahead, preset)
        return self

    def forward(self, r: float, lookahead: int, preset: str) -> None:
        start = self.tokens.index(MASK)
        stop = min(start + lookahead, len(self.tokens))
        logits = forward(tiny(self.shift), self.tokens[:stop])
        logits = forbidden(logits.roll(1, 0) if self.shift else logits)[start:stop]
        places = torch.arange(start, stop)
        fixed = torch.full_like(places, self.seed), places, torch.full_like(places, len(self.commits))
        noise = gumbel(*fixed, logits.shape[1]) if self.temperature else torch.zeros_like(logits)
        heat = self.temperature or 1.0
        twice = self.temperature if preset == "reference" else 1.0
        draft = (logits / heat + twice * noise).argmax(-1).tolist()
        text = torch.tensor([self.tokens[:start] + draft])
        with torch.inference_mode():
            other = judge()(text).logits[0, start - 1 : -1]
        other = torch.cat([other, torch.full((len(other), 2), -torch.inf)], 1)
        if preset == "reference":
            choice = (r * logits + (1 - r) * forbidden(other)).argmax(-1).tolist()
        else:
            choice = ((r * logits + (1 - r) * forbidden(other)) / heat + noise).argmax(-1).tolist()
        agreed = 1
        while agreed < len(draft) and draft[agreed] == choice[agreed]:
            agreed += 1
        self.tokens[start : start + agreed] = draft[:agreed]
        self.commits.append(frozenset((start + i, token) for i, token in enumerate(draft[:agreed])))


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.3])
@pytest.mark.parametrize("preset", ["paper", "reference"])
@pytest.mark.parametrize(("r", "lookahead"), [(0.5, 9), (0.7, 99), (0.9, 4)])
def test_a_naive_version_agrees(r: float, lookahead: int, preset: str, temperature: float, shift: bool) -> None:
    accepted = set()
    for seed, prompt in enumerate(PROMPTS):
        naive = Naive(prompt, shift, temperature, seed).run(r, lookahead, preset)
        row = one(spec(r, lookahead, preset), prompt, shift, temperature=temperature, seed=seed)
        assert row.commits == naive.commits
        accepted |= {len(commit) for commit in row.commits}
    assert accepted - {1}, "nothing was ever accepted: the comparison says little"


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_with_all_weight_on_the_draft_everything_is_accepted(temperature: float) -> None:
    """The same noise on both sides: at any temperature."""
    for prompt in PROMPTS:
        row = one(spec(1, 4), prompt, temperature=temperature)
        assert [len(commit) for commit in row.commits] == [4, 4, 4, 3]
        assert [len(commit) for commit in one(spec(1), prompt, temperature=temperature).commits] == [15]


def test_with_no_weight_on_it_the_verifiers_own_choices_are_accepted() -> None:
    for prompt in PROMPTS:
        row, text = one(spec(0, 5), prompt), list(prompt)
        for commit in row.commits:
            tokens = [token for _, token in sorted(commit)]
            with torch.inference_mode():
                likeliest = judge()(torch.tensor([text + tokens])).logits[0].argmax(-1).tolist()
            assert tokens[1:] == likeliest[len(text) : -1]
            text += tokens


@pytest.mark.parametrize("temperature", [0.0, 1.1])
def test_one_token_a_forward_is_left_to_right(temperature: float) -> None:
    for prompt in PROMPTS:
        apd, plain = (
            one(spec(0.5, 1), prompt, temperature=temperature),
            one("left_to_right(k=1,lookahead=1)", prompt, temperature=temperature),
        )
        assert apd.commits == plain.commits


def test_the_verifier_reads_each_accepted_token_once() -> None:
    """Its cache is cropped to the accepted text, of which the last token is read again."""
    for before, after, event in trail(tiny(), spec(0.5, 6), "none", Request(0, [5, 6, 7], 15, ignore_eos=True)):
        start = int(before.canvas.frontier[0])
        known = int(before.policy.memory.known[0])
        assert known in (0, start - 1)
        assert int(after.policy.memory.known[0]) == start + int(event.update.write.sum()) - 1


def test_the_shipped_verifier_works_out_of_the_box() -> None:
    lm = unmask.load()
    prompt = "Nia has 8 pens. Nia gets 3 more pens. How many pens does Nia have?"
    cautious, bold = lm.generate([prompt] * 1, 64, "apd(r=0.1)"), lm.generate(prompt, 64, "apd")
    assert bold[0].stats.nfe <= cautious[0].stats.nfe < bold[0].stats.tokens
    assert lm.generate(prompt, 64, "apd", "trailing(window=16)")[0].text


def test_slots_that_hold_nothing_are_not_looked_up(tmp_path: Path) -> None:
    """Masks and padding in a ragged batch may have ids that the verifier lacks."""
    rows = [Request(i, prompt, 15, ignore_eos=True) for i, prompt in enumerate(PROMPTS)]
    fewer = Denoiser(tiny().network, replace(tiny().spec, limit=57))
    folder = tmp_path / "v"
    shutil.copytree(VERIFIER, folder)
    config = json.loads((VERIFIER / "config.json").read_text()) | {"vocab_size": 58, "pad_token_id": None}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(VERIFIER / "model.safetensors")
    save_file({n: w[:58].clone() if "embed" in n else w for n, w in weights.items()}, folder / "model.safetensors")
    policy = f'apd(r=0.5,lookahead=6,verifier="{folder}")'
    together = decode(fewer, policy, "none", rows)
    for row in rows:
        assert decode(fewer, policy, "none", [row])[row.row].commits == together[row.row].commits


class TestLifetime:
    """A verifier is read once and goes with the last that holds it."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return shutil.copytree(VERIFIER, tmp_path / "v")

    @pytest.fixture
    def reads(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The folders whose weights are read."""
        found: list[str] = []
        real = causal.fill
        monkeypatch.setattr(causal, "fill", lambda *given: found.append(str(folder)) or real(*given))
        return found

    def test_one_model_reads_it_once(self, folder: Path, reads: list[str]) -> None:
        lm = unmask.Model(tiny(), None)
        for spec in ("apd(r=0.3,{})", "apd(r=0.3,{})", "prophet(apd(r=0.6,{}))", "apd({})"):
            lm.generate([[1, 2], [3]], 6, spec.format(f'verifier="{folder}"'), batch_size=1)
        lm.generate([1, 2], 6, registry.policy(f'apd(verifier="{folder}")'))
        assert reads == [str(folder)]

    def test_it_goes_with_the_model(self, folder: Path) -> None:
        lm = unmask.Model(tiny(), None)
        lm.generate([1, 2], 6, f'apd(verifier="{folder}")')
        network = weakref.ref(next(iter(causal.load(str(folder))._networks.values())))
        gc.collect()
        assert network() is not None
        del lm
        gc.collect()
        assert network() is None

    def test_it_goes_with_the_policy(self, folder: Path, reads: list[str]) -> None:
        lm, policy = unmask.Model(tiny(), None), registry.policy(f'apd(verifier="{folder}")')
        for _ in range(2):
            lm.generate([1, 2], 6, policy)
        assert len(reads) == 1
        held = weakref.ref(policy.judge)
        del policy
        gc.collect()
        assert held() is None


class TestUnfit:
    def fails(self, folder: Path | str, *named: object, canvas: int = 20) -> None:
        policy = registry.policy(f'apd(verifier="{folder}")')
        with refuses(unmask.ModelError, *named):
            decode(tiny(), policy, "none", [Request(0, [1, 2], canvas)])

    def changed(self, tmp_path: Path, **config: object) -> Path:
        """The verifier with another config."""
        shutil.copytree(VERIFIER, tmp_path / "v")
        known = json.loads((VERIFIER / "config.json").read_text())
        (tmp_path / "v" / "config.json").write_text(json.dumps(known | config))
        return tmp_path / "v"

    def test_no_folder(self) -> None:
        for source in ("", " ", str(VERIFIER / "config.json")):
            self.fails(source, repr(source))

    def test_its_own_code_is_not_run(self, tmp_path: Path) -> None:
        code = f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom transformers import LlamaConfig as Odd\n"
        folder = self.changed(tmp_path, model_type="odd", auto_map={"AutoConfig": "odd.Odd"})
        (folder / "odd.py").write_text(code)
        (folder / "config.json").write_text((folder / "config.json").read_text().replace("LlamaFor", "OddFor"))
        self.fails(folder, "OddForCausalLM")
        assert not (tmp_path / "ran").exists()

    def test_windows(self, tmp_path: Path) -> None:
        """Its layers would not attend to the whole text."""
        self.fails(self.changed(tmp_path, sliding_window=4), "sliding_window", 4)

    def test_no_keys_and_values(self, tmp_path: Path) -> None:
        self.fails(self.changed(tmp_path, architectures=["MambaForCausalLM"]), "MambaForCausalLM")

    def test_too_few_ids(self, tmp_path: Path) -> None:
        self.fails(self.changed(tmp_path, vocab_size=61), 61, 62)

    def test_a_prompt_with_an_id_it_lacks(self) -> None:
        with refuses(unmask.RequestError, "prompt 0", 63, "verifier"):
            decode(tiny(), spec(0.5), "none", [Request(0, [1, 63], 8)])

    def test_nothing_is_decoded_before_the_refusal(self, tmp_path: Path) -> None:
        policy = f'apd(verifier="{self.changed(tmp_path, max_position_embeddings=16)}")'
        lm = unmask.Model(tiny(), None)
        with refuses(unmask.ModelError, 16):
            lm.stream([[1, 2, 3], list(range(1, 12))], 8, policy, batch_size=1)

    def test_nothing_there(self) -> None:
        self.fails("/nowhere/at/all", "'/nowhere/at/all'")

    def test_no_weights(self, tmp_path: Path) -> None:
        shutil.copy(VERIFIER / "config.json", tmp_path)
        self.fails(tmp_path, tmp_path)

    def test_weights_missing(self, tmp_path: Path) -> None:
        self.fails(self.changed(tmp_path, num_hidden_layers=3), tmp_path / "v", "layers.2")

    def test_truncated(self, tmp_path: Path) -> None:
        shutil.copytree(VERIFIER, tmp_path / "v")
        file = tmp_path / "v" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])
        self.fails(tmp_path / "v", tmp_path / "v")

    def test_a_canvas_beyond_its_context(self, tmp_path: Path) -> None:
        self.fails(self.changed(tmp_path, max_position_embeddings=16), 16)

    def test_another_tokenizer(self, tmp_path: Path) -> None:
        """Both are named, and the first id that differs."""
        shutil.copytree(VERIFIER, tmp_path / "v")
        theirs = json.loads((api.BUNDLED / "tokenizer.json").read_text())
        pieces = theirs["model"]["vocab"]
        (a, i), (b, j) = list(pieces.items())[40:42]
        pieces[a], pieces[b] = j, i
        (tmp_path / "v" / "tokenizer.json").write_text(json.dumps(theirs))
        with refuses(unmask.ModelError, tmp_path / "v", api.BUNDLED, "tokenizer"):
            unmask.load().generate("Hello", 8, f'apd(verifier="{tmp_path / "v"}")')
