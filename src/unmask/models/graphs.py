"""CUDA graphs of the layers: what a forward pass launches is recorded once for a shape, and then launched as one.

Below some hundred positions a GPU is done with a layer's kernels before the host has launched the next: the time of a
forward pass is that of launching. A graph takes one launch. It works on fixed addresses, so the inputs are copied to
buffers of its own, and keys and values must stay where they are; where they have moved there is another graph.
"""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ..core.rows import Rows
from ..core.state import Slab, slabs

_GRAPHS = 128  # kept at a time
_KEYS = 1024  # shapes remembered
_PASSING = {"scratch", "layers", "flat", "host", "members"}  # of Rows: not what the launches depend on
_POSITIONS = 2048  # rows times slots: above, launching is hidden behind the work

Layers = Callable[[Tensor, Rows, Any], Tensor]
T = TypeVar("T")


class Backend(Protocol):
    """Records what a function launches."""

    def warm(self, run: Callable[[], Tensor]) -> Tensor:
        """Run it once where it will be recorded, so that libraries have made what they make on first use."""

    def record(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """A function that does what it launches, with the result in the same place each time; does nothing itself.

        Raises:
            RuntimeError: it does what cannot be recorded, such as waiting for the device.
        """

    def place(self) -> Hashable:
        """Where it would run now: recordings of one place are of no use in another."""


class Cuda:
    """CUDA graphs that share their memory, for they run one after the other."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    def _side(self) -> torch.cuda.Stream:
        if self._stream is None:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()
        return self._stream

    def warm(self, run: Callable[[], Tensor]) -> Tensor:
        """On the stream that records."""
        side, own = self._side(), torch.cuda.current_stream()
        side.wait_stream(own)
        with torch.cuda.stream(side):
            out = run()
        own.wait_stream(side)  # as the side waits for this one whenever it begins, what either frees is free for both
        return out

    def record(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Other threads go on meanwhile."""
        side, own, graph = self._side(), torch.cuda.current_stream(), torch.cuda.CUDAGraph()
        side.wait_stream(own)
        with torch.cuda.stream(side), _no_collection():
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                out = run()
            except BaseException:
                _give_up(graph)
                raise
            graph.capture_end()
        own.wait_stream(side)

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay

    def place(self) -> Hashable:
        """The stream, of the device that is current."""
        return torch.cuda.current_device(), torch.cuda.current_stream().cuda_stream


@contextmanager
def _no_collection() -> Iterator[None]:
    """What garbage collection frees on the device meanwhile would end the recording."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _give_up(graph: Any) -> None:
    try:
        graph.capture_end()
    except RuntimeError:
        return  # that it has failed is known


class Rerun:
    """Runs the function again on the same buffers: for devices without graphs, to see that all else is right."""

    def warm(self, run: Callable[[], Tensor]) -> Tensor:
        """Run it."""
        return run()

    def record(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Nothing is recorded: the function is kept."""
        return run

    def place(self) -> Hashable:
        """Anywhere."""
        return None


@dataclass(frozen=True)
class _Graph:
    """One recording.

    Attributes:
        inputs: the buffers it reads, in the order of :func:`_inputs`.
        rows: laid out in these buffers; its ``layers`` are what the cache noted in them.
        replay: computes the result.
    """

    inputs: list[Tensor]
    rows: Rows
    replay: Callable[[], Tensor]

    def __call__(self, inputs: list[Tensor], rows: Rows) -> Tensor:
        """The result for other inputs of the same shapes."""
        torch._foreach_copy_(self.inputs, inputs)
        out = self.replay()
        rows.layers.extend(rows.position if at is self.rows.position else at.clone() for at in self.rows.layers)
        return out.clone()


class Graphs:
    """Runs the layers, by a graph where the shape has been seen before.

    Eagerly instead: caches that do not say ``captures``, more positions than ``positions``, and what a graph has
    once failed to record.

    Attributes:
        hits, misses, captured: forward passes run by a graph and eagerly, and graphs recorded so far.
        failure: why the last recording failed; None: none has.
    """

    def __init__(self, backend: Backend | None = None, most: int = _GRAPHS, positions: int = _POSITIONS) -> None:
        self.backend, self.most, self.positions = backend or Cuda(), most, positions
        self.hits = self.misses = self.captured = 0
        self.failure: str | None = None
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._seen: OrderedDict[Hashable, bool] = OrderedDict()  # whether they may be recorded
        self._lock = threading.RLock()

    @torch.no_grad()
    def __call__(self, run: Layers, cache: Any, variant: Hashable, ids: Tensor, rows: Rows, state: Any) -> Tensor:
        """Hidden states ``[B, Q, C]`` behind the last layer.

        Args:
            run: the layers, of the arguments ``ids``, ``rows`` and ``state``.
            cache: what runs each of them.
            variant: what else decides what is launched: the kernels.
            ids: ``[B, Q]``.
            rows: their layout.
            state: the cache's. Slabs are read and written where they are, tensors are read only.
        """
        if not getattr(cache, "captures", False) or rows.position.numel() > self.positions:
            self.misses += 1
            return run(ids, rows, state)
        here: Any = torch.cuda.device_of(ids)  # type: ignore[no-untyped-call]  # nothing where they are not on CUDA
        with self._lock, here:
            inputs, key = self._key(cache, variant, ids, rows, state)
            graph = self._graphs.get(key)
            if graph is None and self._seen.get(key, False):
                graph = self._record(key, run, ids, rows, state, inputs)
            if graph is not None:
                self._graphs.move_to_end(key)
                self.hits += 1
                return graph(inputs, rows)
            self.misses += 1
            if key in self._seen:
                return run(ids, rows, state)
            empty = [slab for slab in slabs(state) if not slab.capacity]
            out = self.backend.warm(lambda: run(ids, rows, state))
            # a recording must not allocate what outlives it
            _keep(self._seen, key, not any(slab.capacity for slab in empty), _KEYS)
            return out

    def _key(self, cache: Any, variant: Hashable, ids: Tensor, rows: Rows, state: Any) -> tuple[list[Tensor], Hashable]:
        """The tensors to copy, and all that the launches depend on."""
        host = tuple((name, rows.most(name)) for name in rows.host)  # layers know of these numbers what this says
        inputs, found = dict[int, Tensor](), list[Hashable]([self.backend.place(), cache, variant, host])
        for tree in (ids, rows, state):
            _scan(tree, inputs, found)
        return list(inputs.values()), tuple(found)

    def clear(self) -> None:
        """Forget all graphs, and give their memory back."""
        with self._lock:
            self._graphs.clear()
            self._seen.clear()

    def _record(
        self, key: Hashable, run: Layers, ids: Tensor, rows: Rows, state: Any, inputs: list[Tensor]
    ) -> _Graph | None:
        buffers = [torch.empty(i.shape, dtype=i.dtype, device=i.device).copy_(i) for i in inputs]
        swap = {id(old): new for old, new in zip(inputs, buffers, strict=True)}
        own: Rows = _swapped(replace(rows, scratch={}, layers=[], flat={}), swap)
        held = _swapped(state, swap)
        try:
            replay = self.backend.record(lambda: run(swap[id(ids)], _anew(own), held))
        except RuntimeError as error:
            self._seen[key], self.failure = False, str(error)
            return None
        self.captured += 1
        graph = _Graph(buffers, own, replay)
        _keep(self._graphs, key, graph, self.most)
        return graph


def _keep(table: OrderedDict[Hashable, T], key: Hashable, value: T, most: int) -> None:
    """Add to a table that forgets what was used least recently."""
    table[key] = value
    while len(table) > most:
        table.popitem(last=False)


def _anew(rows: Rows) -> Rows:
    """The same rows without what was derived of them or noted in them: that is done again."""
    return replace(rows, scratch={}, layers=_emptied(rows.layers), flat={})


def _emptied(noted: list[Tensor]) -> list[Tensor]:
    noted.clear()
    return noted


@lru_cache(maxsize=64)
def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind) if field.init and field.name not in _PASSING)


def _scan(tree: Any, inputs: dict[int, Tensor], found: list[Hashable]) -> None:
    """Note what launches depend on: shapes, which tensors are the same, where slabs are, values on the host; and the
    tensors, each once.
    """
    if isinstance(tree, Tensor):
        place = list(inputs).index(id(tree)) if id(tree) in inputs else len(inputs)
        inputs[id(tree)] = tree
        found.append((place, tree.shape, tree.dtype))
    elif isinstance(tree, (list, tuple)):
        if tree and all(type(leaf) is Slab for leaf in tree):
            found.append(tuple((slab.address, slab.rows, slab.width) for slab in tree))
        else:
            found.append(len(tree))
            for leaf in tree:
                _scan(leaf, inputs, found)
    elif isinstance(tree, Slab):
        found.append((tree.address, tree.rows, tree.width))
    elif is_dataclass(tree) and not isinstance(tree, type):
        for name in _names(type(tree)):
            _scan(getattr(tree, name), inputs, found)
    else:
        found.append(tree)


def _swapped(tree: Any, swap: dict[int, Tensor]) -> Any:
    """The tree with other tensors in the place of some."""
    if isinstance(tree, Tensor):
        return swap.get(id(tree), tree)
    if is_dataclass(tree) and not isinstance(tree, type):
        return replace(tree, **{name: _swapped(getattr(tree, name), swap) for name in _names(type(tree))})
    if isinstance(tree, (list, tuple)):
        return type(tree)(_swapped(leaf, swap) for leaf in tree)
    return tree
