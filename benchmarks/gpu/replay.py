"""The part ``replay``: whole decodings at the shape of an 8B model, end to end."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import autoregressive
import device as devices
import networks
import torch
from book import Book
from passes import Point, least_bytes, operations
from recording import Finished, Recording, Setting, chosen, drive, record, requests, stand_in

from unmask.models.denoiser import Denoiser
from unmask.tasks import problems

MODEL = "llada-8b"
FAMILY = "multi"  # the longest answers of the bundled tasks, about 220 tokens
SLOWFAST = "slowfast(tau_high=0.998,window=1,suffix=cached,block_length=32)"
NEAR = f"lookahead({SLOWFAST},64)"
PUBLISHED = Setting("vanilla, as published", "vanilla", published=True)
EARLY = Setting("vanilla, early stop", "vanilla")
AUTOREGRESSIVE = "autoregressive"
SETTINGS = (
    Setting("slowfast + dllm", SLOWFAST, "dllm(kp=2,kr=1)"),
    PUBLISHED,
    Setting("slowfast", SLOWFAST),
    Setting("lookahead slowfast + dllm", NEAR, "dllm(kp=2,kr=1)"),
    Setting("lookahead slowfast", NEAR),
    Setting("threshold + dual", "threshold(tau=0.9,block_length=32)", "dual"),
    Setting("threshold + prefix", "threshold(tau=0.9,block_length=32)", "prefix"),
    Setting("wino", "wino"),
    Setting("slowfast + dllm, paper's intervals", SLOWFAST, "dllm(kp=15,kr=5,rho=0.25)"),
    Setting("vanilla + dllm, paper's intervals", "vanilla", "dllm(kp=25,kr=5,rho=0.25)"),
    Setting("klass", "klass"),
    Setting("apd", "apd", "trailing(window=16)"),
    EARLY,
    Setting("threshold", "threshold(tau=0.99)"),
    Setting("suffix threshold", "suffix(threshold(tau=0.99),32)"),
    Setting("threshold + entropy_cache", "threshold(tau=0.99)", "entropy_cache"),
)
LENGTHS, BATCHES = (1024, 256), (1, 8, 32)
WARM = 3  # steps before the clock starts, where a whole decoding is too long to be run twice
TWICE = 2.5  # seconds up to which the whole decoding is run before, so that graphs are there
WARMINGS = 3
MOST, EVEN = 14.0, 5.0  # seconds of one measurement, and of one whose passes cost the same; longer ones are cut off
EFFICIENCY, PER_STEP = 0.5, 0.012  # of estimates: share of the ceilings, and seconds of a step besides


@dataclass(frozen=True)
class Item:
    """One thing to measure: a setting (None: the autoregressive model), a length, a batch, graphs or not."""

    setting: Setting | None
    gen_length: int
    batch: int
    how: str = "graphs"

    @property
    def key(self) -> dict[str, Any]:
        """Of its record."""
        label = AUTOREGRESSIVE if self.setting is None else self.setting.label
        return {"model": MODEL, "setting": label, "gen_length": self.gen_length, "batch": self.batch, "how": self.how}


def items(dry: bool) -> Iterator[Item]:
    """Everything, in the order of how much it tells."""
    if dry:
        for setting in (PUBLISHED, SETTINGS[0], SETTINGS[7], SETTINGS[10], SETTINGS[11], None):
            yield Item(setting, 32, 2)
        yield Item(SETTINGS[0], 32, 1, "eager")
        return
    for batch in BATCHES:
        for length in LENGTHS:
            yield Item(None, length, batch)
            for setting in SETTINGS:
                if setting != EARLY or length == 256:
                    yield Item(setting, length, batch)
            if batch == 1:
                yield from (Item(SETTINGS[i], length, batch, "eager") for i in (0, 3))
    yield from (Item(EARLY, 1024, batch) for batch in BATCHES)


class Stage:
    """The large network, the bundled model, and what was recorded with it."""

    def __init__(self, device: torch.device, dry: bool) -> None:
        self.device, self.dry = device, dry
        self.large = networks.random(MODEL, device, dry)
        lm = networks.bundled(device, "float32")
        self.small = lm.denoiser
        family, n = ("record", 2) if dry else (FAMILY, max(BATCHES))
        assert lm.text is not None
        self.prompts: list[list[int]] = [lm.text.encode(p.prompt) for p in problems(family, "test", n)]
        self._recorded: dict[tuple[str, str, int], Recording] = {}
        self._policies: dict[tuple[str, int], Any] = {}  # they hold their verifiers
        self._folder: Any = None

    def recording(self, setting: Setting, gen_length: int) -> Recording:
        """Made when first asked for; vanilla as published says what it says with early stop."""
        key = setting.policy, setting.cache, gen_length
        if key not in self._recorded:
            began = time.time()
            self._recorded[key] = record(self.small, setting, self.prompts, gen_length)
            print(f"recorded {setting.label} {gen_length} in {time.time() - began:.1f} s", flush=True)
        return self._recorded[key]

    def policy(self, setting: Setting, recording: Recording) -> Any:
        """For the replay, with a verifier of 0.5B where one is wanted."""
        spec = setting.policy
        if spec == "apd" and not self.dry:
            self._folder = self._folder or tempfile.TemporaryDirectory()
            spec = f'apd(verifier="{autoregressive.verifier(self._folder.name, self.device)}")'
        key = setting.label, recording.gen_length
        if key not in self._policies:
            self._policies[key] = chosen(spec, recording)
        return self._policies[key]

    def prepared(self, item: Item) -> tuple[Setting, Recording, Any, Any]:
        """The setting of an item, what was recorded, the requests, and the large network that replays it."""
        setting = item.setting
        assert setting is not None
        recording = self.recording(setting, item.gen_length)
        policy = self.policy(setting, recording)
        wanted = requests(setting, policy, self.prompts[: item.batch], item.gen_length, setting.published)
        model = stand_in(self.large.network, self.large.spec, self.small.spec)
        model.recording = recording
        return setting, recording, wanted, model

    def estimate(self, ceilings: devices.Ceilings, recording: Recording, rows: int, whole: bool) -> list[float]:
        """Seconds of each step."""
        length = max(map(len, self.prompts[:rows])) + recording.gen_length
        positions = [float(rows * length)] * recording.gen_length if whole else recording.per_pass(rows)
        found = []
        for count in positions:
            point = Point(length, rows, max(1, round(count / rows)))
            floor = ceilings.seconds(least_bytes(self.large, point), operations(self.large, point))
            found.append(floor / EFFICIENCY + PER_STEP)
        return found


def measure(book: Book, device: torch.device, dry: bool) -> None:
    """Replay all that the time allows."""
    ceilings, stage, left_out = devices.ceilings(book), Stage(device, dry), []
    for item in items(dry):
        if book.has(item.key):
            continue
        if book.left < (1 if dry else 6):
            left_out.append(item.key)
            continue
        try:
            found = _autoregressive(stage, item) if item.setting is None else _item(stage, item, ceilings, book.left)
        except Exception as error:  # one of them must not cost the others
            book.write(item.key, failed=f"{type(error).__name__}: {error}"[:600])
        else:
            book.write(item.key, **found)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if left_out:
        book.write({"what": "left out"}, skipped=f"{len(left_out)} for want of time", items=left_out)


def _item(stage: Stage, item: Item, ceilings: devices.Ceilings, left: float) -> dict[str, Any]:
    setting, recording, wanted, model = stage.prepared(item)
    steps = stage.estimate(ceilings, recording, item.batch, setting.published)
    even = setting.policy == "vanilla" and setting.cache == "none"
    expected, most = sum(steps), min(EVEN if even else MOST, left / 3)
    held = devices.held(stage.device)
    graphs = networks.graphs(stage.device) if item.how == "graphs" else None
    model.graphs = graphs
    before = WARM if expected > TWICE or stage.dry else None
    warm = _warm(model, wanted, item.batch, before, most / 2)
    counted = (graphs.hits, graphs.misses, graphs.captured) if graphs else (0, 0, 0)
    done, seconds = _run(model, wanted, item.batch, None, most)
    whole = len(done.final) == len(wanted)
    rows = range(len(wanted))
    tokens = sum(recording.tokens[row] for row in rows)
    total = item.gen_length if setting.published else max(recording.nfe[row] for row in rows)
    same = whole and all(_same(recording, done, row, setting.published) for row in rows)
    lost = bool(model.missing) if model.missing is not None else False
    found = {
        "policy": setting.policy,
        "cache": setting.cache,
        "seconds": seconds,
        "network": done.network,
        "steps": done.steps,
        "steps_in_all": total,
        "whole": whole,
        "tokens": tokens if whole else None,
        "tokens_in_all": tokens,
        "nfe": [item.gen_length if setting.published else recording.nfe[row] for row in rows],
        "prompt": [len(stage.prompts[row]) for row in rows],
        "path": ("as recorded" if same else "NOT as recorded") if whole else "cut off",
        "unrecorded": lost and not setting.published,
        "forced": "logits" in wanted[0].policy.needs,
        "warm": f"{warm} times" if before is None else f"{before} steps",
        "estimate": expected,
        "peak": devices.peak(stage.device) - held,
    }
    if graphs:
        now = graphs.hits, graphs.misses, graphs.captured
        names = ("by_graph", "eagerly", "captured")
        found |= {name: b - a for name, a, b in zip(names, counted, now, strict=True)}
        found["graph_failure"] = graphs.failure
        graphs.clear()
    return found


def _warm(model: Denoiser, wanted: Sequence[Any], batch: int, steps: int | None, most: float) -> int:
    """Decode before the clock starts: again as long as graphs are still being recorded, three times at most."""
    graphs, began, times, more = model.graphs, time.perf_counter(), 0, True
    while more and times < WARMINGS:
        before = graphs.captured if graphs else 0
        _run(model, wanted, batch, steps, most)
        times += 1
        more = steps is None and graphs is not None and graphs.captured > before
        more = more and time.perf_counter() - began < most
    return times


def _run(model: Denoiser, wanted: Sequence[Any], batch: int, steps: int | None, most: float) -> tuple[Finished, float]:
    """Decode, at most so many steps and seconds."""
    device = model.network.device
    devices.synchronise(device)
    done, began = Finished(), time.perf_counter()
    for done in drive(model, wanted, batch):
        if (steps is not None and done.steps >= steps) or time.perf_counter() - began > most:
            break
    devices.synchronise(device)
    return done, time.perf_counter() - began


def _same(recording: Recording, done: Finished, row: int, published: bool) -> bool:
    """Whether a row ended as it did when it was recorded; as published, up to where that stopped early."""
    theirs, ours = recording.final[row], done.final[row]
    if published:
        end = recording.tokens[row]
        return ours[:end] == theirs[:end]
    return ours == theirs and recording.nfe[row] == done.nfe[row]


def _autoregressive(stage: Stage, item: Item) -> dict[str, Any]:
    """As many tokens as the recorded answers of vanilla have, one after the other."""
    recording = stage.recording(EARLY, item.gen_length)
    rows = range(item.batch)
    tokens = [max(1, recording.tokens[row]) for row in rows]
    prompt = max(len(stage.prompts[row]) for row in rows)
    found = autoregressive.decode(stage.large, item.batch, prompt, max(tokens))
    return {**found, "tokens": sum(tokens), "tokens_in_all": sum(tokens), "whole": True, "nfe": tokens}
