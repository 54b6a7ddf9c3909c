"""Checkpoints on the Hugging Face Hub: an id and a revision become a local folder.

Only an argument that is no local path and looks like `owner/name` comes here, so that a local
folder never touches the network. Needs the extra `hub`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from smolvla_edge.errors import CheckpointError, MissingExtraError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")

# adapter_config.json is fetched so that an adapter can be refused by name.
FILES = [
    "config.json",
    "vlm_config.json",
    "adapter_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "policy_preprocessor.json",
    "policy_postprocessor.json",
    "tokenizer.json",
    "tokenizer/tokenizer.json",
]


def is_hub_id(text: str) -> bool:
    """Whether `text` has the form owner/name of a Hub repository."""
    return _HUB_ID.fullmatch(text) is not None and ".." not in text


def cache_folder() -> Path:
    """Where huggingface_hub keeps downloads on this machine, by its own environment variables."""
    for variable, below in (
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
    ):
        value = os.environ.get(variable)
        if value:
            return Path(value).expanduser() / below
    return Path.home() / ".cache" / "huggingface" / "hub"


def repository_cache(repository: str) -> Path:
    """The cache folder of one model repository (which may not exist)."""
    return cache_folder() / f"models--{repository.replace('/', '--')}"


def download(repository: str, revision: str | None) -> Path:
    """The snapshot folder of a policy, downloaded unless it is in the cache already.

    Raises MissingExtraError without huggingface_hub, CheckpointError when the download fails.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as cause:
        raise MissingExtraError(
            f"{repository} is not a local folder; to download it from the Hub: "
            "pip install 'smolvla-edge[hub]'"
        ) from cause
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=FILES))
    except Exception as cause:  # the client's errors, HTTP's and the socket's share no base
        raise CheckpointError(
            f"cannot download {repository} (revision {revision or 'main'}) from the Hub: "
            f"{type(cause).__name__}: {cause}. {repository} is no local folder either; "
            "check the name, the network and, for a private policy, `hf auth login`"
        ) from cause
