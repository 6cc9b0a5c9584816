"""A policy in a package of its own: fills a response from both ends. The entry point is in pyproject.toml."""

from dataclasses import dataclass

from unmask.core.canvas import Canvas, Update
from unmask.core.config import param
from unmask.core.pick import top
from unmask.core.policy import Policy
from unmask.core.protocols import Ask, Prediction


@dataclass(frozen=True)
class OutsideIn(Policy):
    """Commits the ``k`` masks that are nearest to either end of the response."""

    name = "outside_in"

    k: int = param(2, "positions committed by a forward", ge=1)

    def ask(self, canvas: Canvas, state: None) -> Ask:
        """The whole response."""
        return Ask(canvas.block(None))

    def decide(self, canvas: Canvas, prediction: Prediction, state: None) -> tuple[Update, None]:
        """Commit; -inf stays where there is no mask."""
        middle = (canvas.prompt + canvas.length - 1)[:, None] / 2
        far = (canvas.position - middle).abs()
        open_ = prediction.confidence.isfinite()
        return Update(top(far.masked_fill(~open_, -float("inf")), self.k), prediction.token), None
