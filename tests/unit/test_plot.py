"""The plot of a chunk: it is drawn, shows what it says, and refuses what is no chunk."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from smolvla_edge.errors import InputError, MissingExtraError
from smolvla_edge.plot import plot_chunk


def chunk(horizon: int = 50, dimensions: int = 6) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.standard_normal((horizon, dimensions)).cumsum(0).astype(np.float32)


@pytest.fixture
def matplotlib() -> None:
    pytest.importorskip("matplotlib")


@pytest.mark.usefixtures("matplotlib")
class TestDrawing:
    @pytest.mark.parametrize("shape", [(50, 6), (1, 1), (8, 8), (50, 9), (3, 14), (50, 32)])
    def test_draws_every_shape(self, tmp_path: Path, shape: tuple[int, int]) -> None:
        path = plot_chunk(chunk(*shape), tmp_path / "a.png", title="a title", executed=2)
        assert path.read_bytes().startswith(b"\x89PNG")
        assert [file.name for file in tmp_path.iterdir()] == ["a.png"]  # nothing temporary is left

    @pytest.mark.parametrize("dimensions", [6, 14])
    def test_names_every_dimension_and_the_axis(self, tmp_path: Path, dimensions: int) -> None:
        import matplotlib

        names = [f"joint_{i}" for i in range(dimensions)]
        with matplotlib.rc_context({"svg.fonttype": "none"}):  # text as text
            plot_chunk(
                chunk(50, dimensions),
                tmp_path / "a.svg",
                names=names,
                title="T",
                executed=10,
            )
        text = (tmp_path / "a.svg").read_text()
        for wanted in (*names, "step of the chunk", "after 10 actions", "robot units"):
            assert wanted in text

    def test_replaces_an_older_plot_and_leaves_pyplot_alone(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(b"old")
        plot_chunk(chunk(), tmp_path / "a.png")
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
        pyplot = sys.modules.get("matplotlib.pyplot")
        assert pyplot is None or not pyplot.get_fignums()

    @pytest.mark.parametrize(
        "actions",
        [
            np.zeros(6, np.float32),
            np.zeros((0, 6), np.float32),
            np.zeros((5, 6), np.int64),
            np.full((5, 6), np.nan, np.float32),
            np.zeros((5, 65), np.float32),
        ],
    )
    def test_refuses_what_is_no_chunk(self, tmp_path: Path, actions: np.ndarray) -> None:
        with pytest.raises(InputError):
            plot_chunk(actions, tmp_path / "a.png")
        assert not list(tmp_path.iterdir())

    def test_refuses_a_wrong_number_of_names(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="6 names"):
            plot_chunk(chunk(), tmp_path / "a.png", names=["one"])


@pytest.mark.parametrize("name", ["a.txt", "a", "nowhere/a.png"])
def test_refuses_a_path_before_drawing(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError):
        plot_chunk(chunk(), tmp_path / name)


def test_needs_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"smolvla-edge\[viz\]"):
        plot_chunk(chunk(), tmp_path / "a.png")
