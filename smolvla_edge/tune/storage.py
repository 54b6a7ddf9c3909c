"""Where trials are kept, so that a search can go on: a journal file, or a database by its URL.

A file belongs to one search at a time (it is locked while one runs). A database may be shared by
several machines.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from smolvla_edge.errors import InputError, MissingExtraError

IDENTITY = "smolvla-edge tune"  # the attribute under which a study says what it is of


def need_optuna() -> Any:
    """Optuna, quiet but for its errors. Raises MissingExtraError."""
    try:
        optuna = import_module("optuna")
    except ImportError as cause:
        raise MissingExtraError(
            "the search over plans needs Optuna, which is not installed: "
            "pip install 'smolvla-edge[tune]'"
        ) from cause
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def default_storage(bundle: str | os.PathLike[str]) -> Path:
    """The journal beside a bundle."""
    path = Path(bundle).absolute()
    return path.with_name(f"{path.name}.tune.journal")


def is_shared(place: str) -> bool:
    """Whether it is a server's URL, to which others may write at the same time."""
    return "://" in place and not place.startswith("sqlite:")


@contextmanager
def open_storage(place: str) -> Iterator[Any]:
    """The Optuna storage at a path or URL (sqlite:///FILE, postgresql://..., mysql://...).

    Raises InputError for one that cannot be opened, or that another search is using.
    """
    optuna = need_optuna()
    if is_shared(place):
        yield _database(optuna, place)
        return
    file = Path(place.removeprefix("sqlite:///") if "://" in place else place).absolute()
    with _locked(file):
        if "://" in place:
            yield _database(optuna, place)
            return
        _mend_journal(file)
        backend = optuna.storages.journal.JournalFileBackend(str(file))
        yield optuna.storages.JournalStorage(backend)


def study_of(storage: Any, name: str, identity: Mapping[str, Any]) -> Any:
    """The study of that name, made when there is none. Raises InputError when the one there is of
    something else: trials are never mixed."""
    optuna = need_optuna()
    try:
        study = optuna.create_study(
            study_name=name, storage=storage, directions=["minimize", "minimize"],
            load_if_exists=True,
        )  # fmt: skip
    except ValueError as cause:
        raise InputError(f"--storage: {cause}; name another place") from cause
    found = study.user_attrs.get(IDENTITY)
    if found is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(IDENTITY, dict(identity))
        return study
    differs = sorted(
        key for key in identity if not isinstance(found, dict) or found.get(key) != identity[key]
    )
    if differs:
        was = found if isinstance(found, dict) else {}
        told = "; ".join(
            f"{key}: {was.get(key, 'nothing')!r:.120}, now {identity[key]!r:.120}"
            for key in differs
        )
        raise InputError(
            f"--storage holds the trials of another search ({told}). Go on with what it was made "
            "for, remove it, or name another place"
        )
    return study


def check_names(storage: Any, names: list[str]) -> None:
    """Raises InputError when the storage holds studies of other bundles."""
    others = sorted(set(need_optuna().get_all_study_names(storage)) - set(names))
    if others:
        raise InputError(
            f"--storage holds the trials of other bundles ({', '.join(others):.200}). Name all of "
            "them again, remove it, or name another place"
        )


def _database(optuna: Any, url: str) -> Any:
    try:
        return optuna.storages.RDBStorage(url)
    except Exception as cause:  # drivers raise kinds of their own
        raise InputError(f"--storage: {url} cannot be opened: {cause}") from cause


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    if not file.parent.is_dir():
        raise InputError(f"--storage: the folder {file.parent} does not exist; make it first")
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as cause:
        raise InputError(
            f"{file} cannot be written ({cause.strerror}); name another place with --storage"
        ) from cause
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"{file}: another search is using it; wait for it, or name another place with "
                "--storage"
            ) from None
        yield
    finally:
        os.close(handle)


def _mend_journal(file: Path) -> None:
    """Remove half a line that a machine without power left behind: that trial is run again. Raises
    InputError for a file of something else, before anything is written to it."""
    data = file.read_bytes()
    whole = data.rfind(b"\n") + 1
    try:
        lines = [json.loads(line) for line in data[:whole].splitlines()]
    except ValueError:
        lines = [None]
    strange = any(not isinstance(line, dict) or "op_code" not in line for line in lines)
    if strange or (data and not data.startswith(b"{")):
        raise InputError(
            f"{file}: expected a journal of trials, got something else; name another place with "
            "--storage"
        )
    if whole < len(data):
        os.truncate(file, whole)
