"""The base of every policy: which masked positions to commit in each forward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

from torch import Tensor

from .canvas import Canvas, ModelSpec, Update
from .config import Configured
from .errors import SpecError
from .protocols import Ask, Prediction, Sampling


class Policy(Configured, ABC):
    """Decides which masked positions to commit.

    Parameters are frozen dataclass fields; what changes while decoding lives in the state that the policy returns, a
    dataclass of tensors with dimension 0 = row. Subclasses write :meth:`ask` and :meth:`decide`, and override of the
    rest what differs.

    Attributes:
        threshold: name of the parameter that holds the confidence from which positions are committed, or a policy that
            has such a parameter; "": none.
    """

    threshold = ""

    @property
    def needs(self) -> frozenset[str]:
        """Parts of a prediction beyond token and confidence: ``"entropy"``, ``"margin"``, ``"gap"``, ``"logits"``;
        ``"tempered"``: confidences of the distribution after temperature, top-k and top-p; ``"allowed"``.
        """
        return frozenset()

    @property
    def guidance(self) -> float:
        """Scale of classifier-free guidance; 0: off."""
        return 0.0

    @property
    def probes(self) -> int:
        """The most positions of a response that one forward pass probes; see :class:`~unmask.core.protocols.Ask`."""
        return 0

    @property
    def branches(self) -> int:
        """Canvases of a row that one forward pass computes; above 1 every ask has as many for each row, see
        :class:`~unmask.core.protocols.Forks`.
        """
        return 1

    @property
    def left_to_right(self) -> bool:
        """Whether it commits from left to right only. It cannot fill positions in front of given text, and requests
        with fixed tokens are refused.
        """
        return False

    @property
    def remasks(self) -> bool:
        """Whether it may re-mask or replace tokens that it has committed; of block models in the current block."""
        return False

    @property
    def chooses(self) -> bool:
        """Whether it may commit other tokens than the predicted ones. In rows with a constraint they are checked."""
        return False

    @property
    def reuses(self) -> bool:
        """Whether it may call positions stale, so that every cache, ``none`` included, stores keys and values."""
        return False

    @property
    def holds(self) -> bool:
        """Whether it may work on a block that has no mask left; see :class:`~unmask.core.canvas.Update`."""
        return False

    @property
    def resizes(self) -> bool:
        """Whether it may change the length of a response; see :class:`~unmask.core.canvas.Update`."""
        return False

    @property
    def watches(self) -> bool:
        """Whether it looks at attention; see :class:`~unmask.core.protocols.Looks`."""
        return False

    @property
    def paced(self) -> bool:
        """Whether it commits by a schedule that is made for the length that the response has at first."""
        return False

    @property
    def spans(self) -> bool:
        """Whether the blocks of ``block_length`` may be any spans of the response, longer ones too; see
        :class:`~unmask.core.spans.Spanned`.
        """
        return False

    @property
    def renoises(self) -> bool:
        """Whether it decodes models without a mask token, which denoise uniform noise, and these alone."""
        return False

    def grows_to(self, gen_length: int) -> int:
        """Tokens that a response of ``gen_length`` may grow to."""
        return gen_length

    def view(self, spec: ModelSpec) -> ModelSpec:
        """The model as the policy decodes it: with another visibility, perhaps."""
        return spec

    def most_passes(self, positions: int) -> int:
        """Forward passes that a response of so many positions takes at most; a row that takes more fails."""
        return 4 * positions + 16

    def check(self, prompt: Sequence[int], gen_length: int, spec: ModelSpec) -> None:
        """Refuse a request that the policy cannot decode; called for each before its first forward pass.

        Raises:
            RequestError: what is wrong with this request.
            ModelError: what is wrong with a file or model that the policy needs.
        """

    def init(self, canvas: Canvas, sampling: Sampling) -> Any:
        """The state before the first forward pass: a dataclass of tensors. None, the default: there is none."""
        return None

    @abstractmethod
    def ask(self, canvas: Canvas, state: Any) -> Ask:
        """What the next forward pass has to predict."""

    @abstractmethod
    def decide(self, canvas: Canvas, prediction: Prediction, state: Any) -> tuple[Update, Any]:
        """What to commit: at least one position of every unfinished row whose window has a masked one.

        Only tokens that the policy has committed may be re-masked or replaced, never those of ``canvas.fixed``.
        """

    def notes(self, canvas: Canvas, before: Any, after: Any) -> Mapping[str, Tensor]:
        """What traces and pictures show of the forward pass on ``canvas`` that led from one state to the next.

        Tensors ``[B]`` by name, computed only where somebody looks. Booleans are phases, named for what they are when
        true; ``start`` and ``end`` are the span worked on, ``[start, end)``; others are numbers. Positions count from
        the start of the canvas.
        """
        return {}


class Wrapper(Policy):
    """A policy around another one, ``policy``, whose needs and limits it shares unless it overrides them."""

    policy: Policy

    def __post_init__(self) -> None:
        super().__post_init__()
        held = self.policy
        if not isinstance(held, Policy):
            return
        instead = f"write {held.name}({self.name}(...)) instead of {self.name}({held.name}(...))"
        if held.branches > 1:
            raise SpecError(f"{self.name}: policy must decode one canvas of a row, not {held.branches}; {instead}")
        if held.resizes:
            raise SpecError(
                f"{self.name}: policy must not change the length of a response: only the outermost one may; {instead}"
            )

    @property
    def needs(self) -> frozenset[str]:
        return self.policy.needs

    @property
    def guidance(self) -> float:
        return self.policy.guidance

    @property
    def probes(self) -> int:
        return self.policy.probes

    @property
    def left_to_right(self) -> bool:
        return self.policy.left_to_right

    @property
    def remasks(self) -> bool:
        return self.policy.remasks

    @property
    def chooses(self) -> bool:
        return self.policy.chooses

    @property
    def reuses(self) -> bool:
        return self.policy.reuses

    @property
    def holds(self) -> bool:
        return self.policy.holds

    @property
    def watches(self) -> bool:
        return self.policy.watches

    @property
    def paced(self) -> bool:
        return self.policy.paced

    def most_passes(self, positions: int) -> int:
        return self.policy.most_passes(positions)

    def check(self, prompt: Sequence[int], gen_length: int, spec: ModelSpec) -> None:
        self.policy.check(prompt, gen_length, spec)

    def init(self, canvas: Canvas, sampling: Sampling) -> Any:
        return self.policy.init(canvas, sampling)

    def ask(self, canvas: Canvas, state: Any) -> Ask:
        return self.policy.ask(canvas, state)

    def decide(self, canvas: Canvas, prediction: Prediction, state: Any) -> tuple[Update, Any]:
        return self.policy.decide(canvas, prediction, state)

    def notes(self, canvas: Canvas, before: Any, after: Any) -> Mapping[str, Tensor]:
        return self.policy.notes(canvas, before, after)


def threshold_of(policy: Policy) -> float | None:
    """The confidence from which a policy, or the one that it wraps, commits; None: there is none."""
    held = getattr(policy, policy.threshold) if policy.threshold else None
    return threshold_of(held) if isinstance(held, Policy) else held


def with_threshold(policy: Policy, threshold: Tensor) -> Policy:
    """The same policy with ``[B]`` thresholds, one per row, in place of the number that ``policy.threshold`` names."""
    twin, held = copy(policy), getattr(policy, policy.threshold)
    value = with_threshold(held, threshold) if isinstance(held, Policy) else threshold
    object.__setattr__(twin, policy.threshold, value)
    return twin
