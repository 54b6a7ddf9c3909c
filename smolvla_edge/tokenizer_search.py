"""Finding tokenizer.json on this machine. Nothing is downloaded."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from smolvla_edge.errors import TokenizerError
from smolvla_edge.hub import cache_folder, is_hub_id, repository_cache

TOKENIZER_FILE = "tokenizer.json"


def find_tokenizer(
    folder: Path, vlm_model_name: str, explicit: str | os.PathLike[str] | None = None
) -> Path | None:
    """The tokenizer of a checkpoint: the explicit file, in the folder, in the Hugging Face cache.

    None when there is none (`missing_tokenizer` says how to get it); TokenizerError when the
    explicit file does not exist.
    """
    if explicit is not None:
        path = Path(explicit).expanduser()
        if not path.is_file():
            raise TokenizerError(f"expected a tokenizer.json at {path}, which is not a file")
        return path
    local = (folder / TOKENIZER_FILE, folder / "tokenizer" / TOKENIZER_FILE)
    return next(
        (path for path in (*local, *_cached(vlm_model_name)) if path.is_file()),
        None,
    )


def missing_tokenizer(folder: Path, vlm_model_name: str) -> TokenizerError:
    """The error for a checkpoint without tokenizer, with the command that gets it."""
    target = folder / TOKENIZER_FILE
    if is_hub_id(vlm_model_name):
        url = f"https://huggingface.co/{vlm_model_name}/resolve/main/{TOKENIZER_FILE}"
        advice = f"Get it with: curl -fL -o {shlex.quote(str(target))} {url}"
    else:
        advice = f"Copy the tokenizer.json of {vlm_model_name!r:.200} to {target}"
    return TokenizerError(
        f"expected {TOKENIZER_FILE} in {folder}, in {folder / 'tokenizer'} or of "
        f"{vlm_model_name!r:.200} in the Hugging Face cache {cache_folder()}; found none. "
        f"Name one with --tokenizer FILE. {advice}"
    )


def _cached(vlm_model_name: str) -> list[Path]:
    """Candidates in the Hugging Face cache: the `main` revision, then the others, newest first."""
    if not is_hub_id(vlm_model_name):
        return []
    repository = repository_cache(vlm_model_name)
    try:
        main = [repository / "snapshots" / (repository / "refs" / "main").read_text().strip()]
    except (OSError, UnicodeDecodeError):
        main = []
    try:
        others = sorted((repository / "snapshots").iterdir(), key=lambda path: path.stat().st_mtime)
    except OSError:
        others = []
    return [snapshot / TOKENIZER_FILE for snapshot in (*main, *reversed(others))]
