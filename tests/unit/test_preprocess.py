"""Observations: what is let through unchanged, and what is refused with which advice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smolvla_edge.contract import TokenizerRules
from smolvla_edge.errors import InputError, PromptTooLongError, TokenizerError
from smolvla_edge.preprocess import check_frame, check_noise, check_state
from smolvla_edge.tokenizer import TaskTokenizer

U8 = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
F32 = U8.astype(np.float32) / 255


class TestFrame:
    @pytest.mark.parametrize("frame", [U8, F32])
    def test_passes_unchanged(self, frame: np.ndarray) -> None:
        result = check_frame("top", frame)
        assert result.dtype == frame.dtype
        np.testing.assert_array_equal(result, frame)

    def test_views_are_copied_not_refused(self) -> None:
        """BGR to RGB is a negative stride."""
        result = check_frame("top", U8[..., ::-1])
        assert result.flags.c_contiguous
        np.testing.assert_array_equal(result, U8[..., ::-1])

    def test_pil_image(self) -> None:
        image = pytest.importorskip("PIL.Image").fromarray(U8)
        np.testing.assert_array_equal(check_frame("top", image), U8)

    @pytest.mark.parametrize(
        "frame, advice",
        [
            (U8[..., 0], "grey"),
            (U8[..., :1], "grey"),
            (np.zeros((4, 5, 4), np.uint8), "alpha"),
            (U8.transpose(2, 0, 1), "channels come first"),
            (U8[None], "batch dimension"),
            (np.zeros((2, 4, 5, 3), np.uint8), "three dimensions"),
            (np.zeros(3, np.uint8), "three dimensions"),
            (np.zeros((4, 5, 2), np.uint8), "2 channels"),
            (np.zeros((0, 5, 3), np.uint8), "empty"),
            (np.zeros((4, 0, 3), np.float32), "empty"),
            (np.zeros((4, 5, 0), np.uint8), "empty"),
            (F32.astype(np.float64), "float32"),
            (F32.astype(np.float16), "float32"),
            (F32.astype(">f4"), "float32"),
            (U8.astype(np.int32), "uint8"),
            (U8.astype(bool), "uint8"),
            (U8.astype(object), "uint8"),
            (U8.astype(np.float32), "0..255"),
            (F32 - 0.5, "in [0, 1]"),
            (F32 * np.float32(1.5) + 0.8, "in [0, 1]"),
            (np.full((4, 5, 3), np.nan, np.float32), "NaN"),
            (np.full((4, 5, 3), np.inf, np.float32), "inf"),
            ("frame.png", "str"),
            ([[[1, 2, 3]]], "list"),
            (None, "NoneType"),
        ],
    )
    def test_refused(self, frame: Any, advice: str) -> None:
        with pytest.raises(InputError) as caught:
            check_frame("observation.images.top", frame)
        assert "observation.images.top: expected" in str(caught.value)
        assert advice in str(caught.value)

    def test_one_nan_is_enough(self) -> None:
        frame = F32.copy()
        frame[2, 3, 1] = np.nan
        with pytest.raises(InputError, match="NaN"):
            check_frame("top", frame)

    def test_rounding_of_a_resize_is_no_error(self) -> None:
        check_frame("top", np.full((4, 5, 3), 1 + 1e-6, np.float32))

    def test_nothing_left_of_a_thin_frame(self) -> None:
        thin = np.zeros((1, 2000, 3), np.uint8)
        check_frame("top", thin)
        with pytest.raises(InputError, match="2000x1 pixels"):
            check_frame("top", thin, (512, 512))
        check_frame("top", np.zeros((4, 2000, 3), np.uint8), (512, 512))


class TestState:
    def test_passes(self) -> None:
        state = np.arange(6, dtype=np.float32)
        np.testing.assert_array_equal(check_state(state[::-1], 6), state[::-1])

    @pytest.mark.parametrize(
        "state, part",
        [
            (np.zeros(5, np.float32), "expected 6 values"),
            (np.zeros(0, np.float32), "expected 6 values"),
            (np.zeros((1, 6), np.float32), "one dimension"),
            (np.zeros(6), "float64"),
            (np.zeros(6, np.int64), "int64"),
            ([0.0] * 6, "list"),
            (None, "NoneType"),
            (np.array([0, 1, np.nan, 3, np.inf, 5], np.float32), "indices [2, 4]"),
        ],
    )
    def test_refused(self, state: Any, part: str) -> None:
        with pytest.raises(InputError) as caught:
            check_state(state, 6)
        assert part in str(caught.value)


class TestNoise:
    def test_more_rows_are_allowed(self) -> None:
        assert check_noise(np.zeros((50, 8), np.float32), 10, 8).shape == (50, 8)

    @pytest.mark.parametrize(
        "noise",
        [
            np.zeros((9, 8), np.float32),
            np.zeros((10, 7), np.float32),
            np.zeros((10, 8)),
            np.zeros((1, 10, 8), np.float32),
            np.full((10, 8), np.nan, np.float32),
            [[0.0]],
        ],
    )
    def test_refused(self, noise: Any) -> None:
        with pytest.raises(InputError, match="noise"):
            check_noise(noise, 10, 8)


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer without merges, like the policy's but one token a byte; no 'z'."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {"z"})
    vocab = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=32)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


class TestTokenizer:
    def make(self, path: Path, limit: int = 12, **options: Any) -> TaskTokenizer:
        return TaskTokenizer(path, TokenizerRules(limit), **options)

    def test_newline_is_appended_once(self, tokenizer_file: Path) -> None:
        tokenizer = self.make(tokenizer_file)
        plain, ended = tokenizer.encode("push").ids, tokenizer.encode("push\n").ids
        assert len(plain) == 5  # the file's own truncation to 4 and padding to 32 are off
        np.testing.assert_array_equal(plain, ended)
        assert plain.dtype == np.int64

    def test_no_newline_when_the_checkpoint_has_none(self, tokenizer_file: Path) -> None:
        tokenizer = TaskTokenizer(tokenizer_file, TokenizerRules(12, newline=False))
        assert len(tokenizer.encode("push").ids) == 4

    def test_the_newline_counts(self, tokenizer_file: Path) -> None:
        tokenizer = self.make(tokenizer_file, 12)
        assert len(tokenizer.encode("a" * 11).ids) == 12
        with pytest.raises(PromptTooLongError, match=r"at most 12 tokens .* got 13"):
            tokenizer.encode("a" * 12)

    @pytest.mark.parametrize("task", ["", " ", "\n", " \t\n"])
    def test_empty(self, tokenizer_file: Path, task: str) -> None:
        with pytest.raises(InputError, match="empty"):
            self.make(tokenizer_file).encode(task)

    @pytest.mark.parametrize("task", [None, b"push", 3, ["push"]])
    def test_not_a_string(self, tokenizer_file: Path, task: Any) -> None:
        with pytest.raises(InputError, match="expected a string"):
            self.make(tokenizer_file).encode(task)

    def test_lone_surrogate(self, tokenizer_file: Path) -> None:
        with pytest.raises(TokenizerError, match="cannot encode"):
            self.make(tokenizer_file).encode("a\ud800")

    def test_absurd_length(self, tokenizer_file: Path) -> None:
        with pytest.raises(PromptTooLongError):
            self.make(tokenizer_file).encode("a" * (1 << 17))

    def test_dropped_characters_are_flagged(self, tokenizer_file: Path) -> None:
        tokenizer = self.make(tokenizer_file)
        assert tokenizer.encode("push").flags == ()
        (flag,) = tokenizer.encode("a zz b").flags
        assert "'z'" in flag

    def test_nothing_left(self, tokenizer_file: Path) -> None:
        with pytest.raises(TokenizerError, match="got none"):
            TaskTokenizer(tokenizer_file, TokenizerRules(12, newline=False)).encode("zzz")

    def test_ids_outside_the_model(self, tokenizer_file: Path) -> None:
        with pytest.raises(TokenizerError, match="outside the model's vocabulary of 10"):
            self.make(tokenizer_file, vocab=10).encode("push")

    def test_encoded_once(self, tokenizer_file: Path) -> None:
        tokenizer = self.make(tokenizer_file)
        assert tokenizer.encode("push") is tokenizer.encode("push")
        assert not tokenizer.encode("push").ids.flags.writeable
        for index in range(200):
            tokenizer.encode(f"task {index}")
        assert len(tokenizer._cache) <= 64

    @pytest.mark.parametrize("text", ["", "{}", "[]", '{"model": 3}', "\x00\xff"])
    def test_malformed_file(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "t.json").write_text(text)
        with pytest.raises(TokenizerError, match=r"t\.json"):
            self.make(tmp_path / "t.json")

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(TokenizerError, match="cannot read"):
            self.make(tmp_path / "none.json")
