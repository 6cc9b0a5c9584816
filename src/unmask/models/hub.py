"""Folders of checkpoints: local ones, those that come with the package, and those that the Hugging Face hub has."""

from __future__ import annotations

import re
from pathlib import Path

from ..core.errors import ModelError

_ASSETS = Path(__file__).parents[1] / "assets"
BUNDLED = {"unmask-tiny": _ASSETS / "tiny", "unmask-tiny-block": _ASSETS / "tiny-block"}
"""Models that come with the package, by name. A local folder of that name goes first."""

_HOLDS = {"adapter": "adapter_config.json"}
_LIKE = {"model": f" like GSAI-ML/LLaDA-8B-Instruct, or one of {', '.join(BUNDLED)}"}
_HUB_ID = re.compile(r"[\w.\-]+/[\w.\-]+")


def find_folder(path_or_id: str | Path, weights: bool = True, revision: str | None = None, kind: str = "model") -> Path:
    """A local folder, one of ``BUNDLED``, or a hub id fetched into the hub's cache, ``weights`` and all.

    Raises:
        ModelError: none of them, or a ``revision`` of a local or bundled folder.
    """
    if not isinstance(path_or_id, (str, Path)) or not str(path_or_id):
        raise ModelError(f"no {kind} at {path_or_id!r}: expected a folder or a hub id{_LIKE.get(kind, '')}")
    folder = Path(path_or_id).expanduser()
    if not folder.is_dir():
        folder = BUNDLED.get(str(path_or_id), folder)
    if not folder.is_dir():
        if folder.exists() or not _HUB_ID.fullmatch(str(path_or_id)):
            raise ModelError(
                f"no {kind} at {str(path_or_id)!r}: expected a folder with {_HOLDS.get(kind, 'config.json')} and "
                f"*.safetensors, or a hub id{_LIKE.get(kind, '')}"
            )
        return _download(str(path_or_id), weights, revision)
    if revision is not None:
        raise ModelError(f"revision {revision!r}: {folder} is a local folder, and only hub ids have revisions")
    return folder


def _download(repo: str, weights: bool, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    small, weighty = ["*.json", "*.txt", "*.jinja", "*.model"], (["*.safetensors"], ["*model*.bin"])
    try:
        folder = Path(
            snapshot_download(repo, revision=revision, allow_patterns=small + (weighty[0] if weights else []))
        )
        if weights and not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(repo, revision=revision, allow_patterns=small + weighty[1]))
        return folder
    except Exception as error:  # the hub's own errors, and those of whichever HTTP library it uses
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{repo!r} is no local folder and could not be fetched from the hub: {reason}") from None
