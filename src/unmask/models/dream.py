"""Dream (arXiv 2508.15487): Dream-7B Base and Instruct, Dream-Coder, DiffuCoder, and anything in their layout."""

from __future__ import annotations

from . import llama
from .config import Config
from .family import Description, Recommended, special_ids
from .transformer import Architecture

_PUBLISHED = Recommended("slowfast(preset=reference_dream)", "none", 256, "SlowFast's published setting for Dream")


class Dream:
    """Qwen2.5's layers without the causal mask; the output at a position predicts the next one (``shift``)."""

    name = "dream"
    architectures: tuple[str, ...] = ("DreamModel",)
    harmless = llama.HARMLESS

    def describe(self, config: Config) -> Description:
        """See :class:`unmask.models.family.Family`."""
        arch, context = llama.architecture(config, qkv_bias=True)
        return Description(self.name, arch, context, **special_ids(config), shift=True, published=_PUBLISHED)

    def names(self, arch: Architecture) -> dict[str, str]:
        """See :class:`unmask.models.family.Family`."""
        return llama.names(arch)
