"""From a task to token ids: newline, encode, refuse what LeRobot would cut."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smolvla_edge.contract import TokenizerRules
from smolvla_edge.errors import InputError, PromptTooLongError, TokenizerError
from smolvla_edge.strict_json import read_small_file

_MAX_TASK_CHARS = 1 << 16
_CACHED_TASKS = 64


@dataclass(frozen=True)
class EncodedTask:
    """`ids`: int64 [n <= max_length], read-only, newline included.  `flags`: what got lost."""

    ids: np.ndarray
    flags: tuple[str, ...] = ()


class TaskTokenizer:
    """Encodes tasks under the contract's rules and remembers the last ones.

    Raises TokenizerError when the file is missing or is no tokenizer.
    """

    def __init__(
        self, path: str | os.PathLike[str], rules: TokenizerRules, vocab: int | None = None
    ) -> None:
        import tokenizers

        self.path = Path(path)
        self.rules = rules
        self._vocab = vocab
        self._cache: OrderedDict[str, EncodedTask] = OrderedDict()
        data = read_small_file(self.path, TokenizerError)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(data)
        except Exception as cause:  # the library raises plain Exception
            raise TokenizerError(f"{self.path}: expected a tokenizer.json: {cause}") from cause
        # A file may cut or pad by itself; both are decided here.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, task: str) -> EncodedTask:
        """Token ids of the task with its newline.

        Characters that the vocabulary has no token for are dropped, as LeRobot does, but with a
        flag. Raises InputError for an empty task, PromptTooLongError for one over the limit
        (LeRobot cuts it, and its newline with it), TokenizerError for what cannot be encoded.
        """
        if not isinstance(task, str):
            raise InputError(f"task: expected a string, got {type(task).__name__}")
        encoded = self._cache.get(task)
        if encoded is None:
            encoded = self._cache[task] = self._encode(task)
            if len(self._cache) > _CACHED_TASKS:
                self._cache.popitem(last=False)
        return encoded

    def _encode(self, task: str) -> EncodedTask:
        if not task.strip():
            raise InputError("task: expected an instruction, got an empty one")
        if len(task) > _MAX_TASK_CHARS:
            raise PromptTooLongError(
                f"task: expected at most {self.rules.max_length} tokens, got {len(task)} characters"
            )
        text = task if task.endswith("\n") or not self.rules.newline else task + "\n"
        ids = self._ids(text)
        if not ids:
            raise TokenizerError(
                f"{self.path}: expected token ids for {task!r:.200}, got none: its vocabulary has "
                "no token for any of it. Use the policy's own tokenizer"
            )
        limit = self.rules.max_length
        if len(ids) > limit:
            raise PromptTooLongError(
                f"task: expected at most {limit} tokens (tokenizer_max_length, newline counted), "
                f"got {len(ids)}: {task!r:.200}. Shorten it; cutting would change its meaning"
            )
        if self._vocab is not None and max(ids) >= self._vocab:
            raise TokenizerError(
                f"{self.path}: token id {max(ids)} is outside the model's vocabulary of "
                f"{self._vocab}. Use the policy's own tokenizer"
            )
        result = np.asarray(ids, np.int64)
        result.setflags(write=False)
        # Asked one by one: after a dropped character the library's offsets point elsewhere.
        lost = [c for c in dict.fromkeys(text) if not c.isspace() and not self._ids(c, False)]
        if not lost:
            return EncodedTask(result)
        dropped = ", ".join(map(repr, lost))
        return EncodedTask(result, (f"task: no token for {dropped}, dropped by the tokenizer",))

    def _ids(self, text: str, specials: bool = True) -> list[int]:
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=specials).ids)
        except Exception as cause:  # lone surrogates, a broken pre-tokenizer
            raise TokenizerError(f"{self.path}: cannot encode {text!r:.200}: {cause}") from cause
