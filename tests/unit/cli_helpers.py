"""What a person sees of a command: exit code, stdout and stderr."""

from __future__ import annotations

import json
from typing import Any


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict[str, Any]:
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


def refused(result: Result, *words: str) -> None:
    """Exit code 2, nothing on stdout, a message on stderr without a traceback."""
    assert result.code == 2, result.err
    assert result.out == ""
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err
