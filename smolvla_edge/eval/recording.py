"""An episode remembered in full, to be shown: film, motion, plans, times."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.chunk import ActionChunk
from smolvla_edge.dataset.arrow import need
from smolvla_edge.eval.episode import EpisodeResult, run_episode
from smolvla_edge.eval.metaworld import CONTROL_RATE, FILM_SIDE, Metaworld
from smolvla_edge.eval.runner import Setting
from smolvla_edge.eval.sides import Side
from smolvla_edge.eval.tasks import TASKS

METRES_PER_ACTION = 0.01  # what a displacement of 1 asks the hand to do in a step
EVERY = 4  # steps between frames of the film: 20 frames a second


@dataclass
class Recording:
    """Filled by `watch`, which is what `run_episode` calls before every step."""

    world: Metaworld
    film: list[NDArray[np.uint8]] = field(default_factory=list)
    hand: list[NDArray[np.float32]] = field(default_factory=list)  # of every step, metres
    chunks: list[tuple[int, ActionChunk]] = field(default_factory=list)  # (first step, chunk)

    def watch(self, state: NDArray[np.float32], chunk: ActionChunk, row: int) -> None:
        if len(self.hand) % EVERY == 0:
            self.film.append(self.world.picture((FILM_SIDE, FILM_SIDE)))
        if row == 0:
            self.chunks.append((len(self.hand), chunk))
        self.hand.append(state[:3].copy())

    def finish(self) -> None:
        """The moment after the last step."""
        self.film.append(self.world.picture((FILM_SIDE, FILM_SIDE)))
        self.hand.append(self.world.state[:3].copy())

    def planned(self, number: int) -> NDArray[np.float32]:
        """Where chunk `number` wants the hand to be, [rows + 1, 3] metres, from where it was."""
        first, chunk = self.chunks[number]
        moves = np.clip(chunk.actions[:, :3], -1, 1).cumsum(0) * METRES_PER_ACTION
        start = self.hand[first]
        return np.vstack([start, start + moves]).astype(np.float32)


def films(
    side: Side, played: Sequence[EpisodeResult], setting: Setting, most: int = 4
) -> list[tuple[str, bytes]]:
    """(caption, GIF) of some of these episodes, played again: failures first, then one a task."""
    failed = [result for result in played if not result.success]
    others = list({result.task: result for result in played if result.success}.values())
    policy, n_action_steps = side.open()
    found = []
    for result in [*failed[: most // 2], *others][:most]:
        world = Metaworld(TASKS[result.task], setting.width, setting.height)
        recording = Recording(world)
        again = run_episode(
            policy, world, result.seed, n_action_steps, instruction=side.told(world.task),
            blank=side.blank, step_limit=setting.step_limit, watch=recording.watch,
        )  # fmt: skip
        recording.finish()
        world.close()
        words = side.told(world.task)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "film.gif"
            write_gif(path, recording.film, words, again)
            verdict = "solved" if again.success else "not solved"
            caption = f"{result.task}, seed {result.seed}: {verdict} in {again.steps} steps"
            found.append((caption, path.read_bytes()))
    return found


def write_gif(
    path: Path, film: list[NDArray[np.uint8]], caption: str, result: EpisodeResult
) -> None:
    """The film at real speed, the instruction above, a green or red frame at the end (pillow)."""
    image, draw = need("PIL.Image", "pillow"), need("PIL.ImageDraw", "pillow")
    frames = []
    for number, picture in enumerate(film):
        frame = image.fromarray(picture)
        pen = draw.Draw(frame)
        pen.rectangle((0, 0, frame.width, 22), fill=(20, 22, 26))
        pen.text((8, 6), caption, fill=(240, 240, 240))
        step = min(number * EVERY, result.steps)
        pen.text((8, frame.height - 18), f"{step / CONTROL_RATE:.1f} s", fill=(240, 240, 240))
        if number == len(film) - 1:
            color = (40, 190, 90) if result.success else (220, 60, 50)
            pen.rectangle((0, 0, frame.width - 1, frame.height - 1), outline=color, width=6)
        # One palette for the whole film would be smaller and flicker-free, and poorer in colours.
        frames.append(frame.quantize(128, method=image.Quantize.FASTOCTREE))
    step_ms = round(1000 * EVERY / CONTROL_RATE)  # 50; a GIF counts in hundredths of a second
    partial = path.with_name(f".{path.name}.partial")
    frames[0].save(
        partial, format="GIF", save_all=True, append_images=frames[1:],
        duration=[step_ms] * (len(frames) - 1) + [1500], loop=0,
    )  # fmt: skip
    partial.replace(path)
