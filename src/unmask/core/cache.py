"""What a cache is: it runs the layers and decides which positions are computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from .canvas import NO_MASK, Canvas, ModelSpec, Update
from .config import Configured
from .errors import RequestError
from .protocols import Ask, Block, Geometry, Plan, Prediction
from .rows import Rows
from .store import Store, attend_stored


class Cache(Configured, ABC):
    """Base of the caches. Hyper-parameters are frozen fields; what changes lives in the state.

    A state is a :class:`~unmask.core.store.Store`, or a dataclass with one in its field ``store``; every tensor has
    dimension 0 = row, see :mod:`unmask.core.state`.

    ``captures`` says that a graph may record the layers (:mod:`unmask.models.graphs`): they write to slabs only, wait
    for nothing, and what they launch depends on shapes and ``Rows.most`` alone. ``attention`` names the models it
    works with: ``"full"``, where every position sees every other, ``"block"`` models, ``"canvas"``: those that denoise
    uniform noise behind a prefix, and ``"order"``: any-subset models that are decoded in an order. ``needs`` names
    measures that :meth:`note` reads of a prediction, as :attr:`unmask.core.policy.Policy.needs` does.
    """

    captures = False
    attention: tuple[str, ...] = ("full",)
    needs: frozenset[str] = frozenset()

    def check(self, spec: ModelSpec) -> None:
        """Refuse a model that the cache is not made for.

        Raises:
            RequestError: what the cache and the model are.
        """
        kind = "full" if spec.block is None else "canvas" if spec.mask == NO_MASK else "block"
        kind = "order" if spec.ordered else kind
        if kind not in self.attention:
            own = {
                "order": "that is decoded in an order, in which a position sees what comes before it",
                "full": "in which every position sees every other",
                "block": f"with blocks of {spec.block} positions",
                "canvas": f"that denoises canvases of {spec.block} positions, which are new in every forward pass",
            }
            raise RequestError(
                f"cache {self.name} does not work with a model {own[kind]}; `unmask caches` says which caches do"
            )

    def init(self, canvas: Canvas, geometry: Geometry, like: Tensor) -> Any:
        """The state before the first forward pass; ``like`` gives dtype and device. By default an empty store."""
        return Store.empty(canvas, geometry, like)

    def stored(self, state: Any) -> bool:
        """Whether layers attend to stored keys, by position, as most do; else to those of the slots computed."""
        return True

    @abstractmethod
    def plan(self, canvas: Canvas, ask: Ask, need: Tensor, state: Any) -> tuple[Plan, Any]:
        """Which positions the next forward pass computes, without waiting for the device.

        Args:
            canvas: the rows.
            ask: what the policy wants.
            need: ``[B, T]`` the sources of the window's masked positions. They must be computed, unless the ask calls
                these positions optional. Those of it that are not valid are probes: they hold other things in every
                forward pass.
            state: from :meth:`init` or the last :meth:`note`.
        """

    def layer(self, index: int, block: Block, hidden: Tensor, rows: Rows, state: Any) -> Tensor:
        """Run layer ``index`` on ``hidden [B, Q, C]``; may write into the state's slabs. By default the ordinary layer,
        which attends to all stored keys and values.
        """
        return attend_stored(index, block, hidden, rows, state.store)

    def note(self, update: Update, prediction: Prediction, state: Any) -> Any:
        """The state once it is known what was committed and what the model had predicted. By default unchanged."""
        return state
