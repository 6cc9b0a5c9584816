"""Fast-dLLM v2 (arXiv 2509.26328): Qwen2.5 with block-causal attention, each output predicting the next position."""

from __future__ import annotations

from . import llama
from .config import Config, words
from .family import Blocks, Description, Recommended, special_ids
from .transformer import Architecture

MASK = 151665
_HARMLESS = words("conplemenrary_mask")  # of training, as it is spelled there
_PUBLISHED = Recommended("threshold(tau=0.9)", "blockwise", 512, "Fast-dLLM v2's published setting")


class FastDllm:
    """Qwen2.5's layers, block-causal and shifted; configs say the block length as ``bd_size``."""

    name = "fast_dllm_v2"
    architectures: tuple[str, ...] = ("Fast_dLLM_QwenForCausalLM",)
    harmless = llama.HARMLESS | _HARMLESS

    def describe(self, config: Config) -> Description:
        """See :class:`unmask.models.family.Family`."""
        arch, context = llama.architecture(config, qkv_bias=True)
        blocks = Blocks(config.integer("bd_size", 32), ("bd_size",))
        return Description(
            self.name, arch, context, **special_ids(config, MASK), shift=True, published=_PUBLISHED, blocks=blocks
        )

    def names(self, arch: Architecture) -> dict[str, str]:
        """See :class:`unmask.models.family.Family`."""
        return llama.names(arch)
