"""Image files: what is read, and that everything else is an InputError, never a crash."""

from __future__ import annotations

import hashlib
import struct
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from smolvla_edge import image_file
from smolvla_edge.errors import InputError, MissingExtraError
from smolvla_edge.image_file import read_image

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
GOOD = b"P6\n3 2\n255\n" + PIXELS.tobytes()


def write(folder: Path, data: bytes, name: str = "image.ppm") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "header",
    [
        b"P6\n3 2\n255\n",
        b"P6 3 2 255 ",
        b"P6\t3\r\n2\n255\n",
        b"P6\n# a comment\n3 # width\n2\n#\n255\n",
        b"P6\n003 02\n255\n",
    ],
)
def test_reads_every_legal_header(tmp_path: Path, header: bytes) -> None:
    frame = read_image(write(tmp_path, header + PIXELS.tobytes()))
    assert frame.dtype == np.uint8 and frame.flags.owndata and frame.flags.writeable
    np.testing.assert_array_equal(frame, PIXELS)


def test_a_pixel_byte_that_looks_like_a_comment_is_a_pixel(tmp_path: Path) -> None:
    frame = read_image(write(tmp_path, b"P6 1 1 255\n# \n"))
    np.testing.assert_array_equal(frame, np.frombuffer(b"# \n", np.uint8).reshape(1, 1, 3))


@pytest.mark.parametrize(
    "data",
    [
        b"P6",
        b"P6\n",
        b"P6\n3\n",
        b"P63 2 255\n" + PIXELS.tobytes(),
        b"P6\n3 2\n255",
        b"P6\n3 2\n255" + PIXELS.tobytes(),
        b"P6\n-3 2\n255\n" + PIXELS.tobytes(),
        b"P6\n3.0 2\n255\n" + PIXELS.tobytes(),
        b"P6\n0x3 2\n255\n" + PIXELS.tobytes(),
        b"P6\n3 2\n65535\n" + PIXELS.tobytes() * 2,
        b"P6\n3 2\n254\n" + PIXELS.tobytes(),
        b"P6\n3 2\n0\n" + PIXELS.tobytes(),
        b"P6\n0 2\n255\n",
        b"P6\n3 0\n255\n",
        b"P6\n99999999999999999999 2\n255\n" + PIXELS.tobytes(),
        b"P6\n16385 1\n255\n" + b"\0" * 16385 * 3,
        b"P6\n10000 10000\n255\n",
        b"P6\n# no end of the comment",
        b"P6\n#" + b"x" * 5000 + b"\n3 2\n255\n" + PIXELS.tobytes(),
        GOOD[:-1],
        GOOD + b"\0",
        GOOD + GOOD,
    ],
)
def test_refuses_malformed_ppm(tmp_path: Path, data: bytes) -> None:
    path = write(tmp_path, data)
    with pytest.raises(InputError, match=r"image\.ppm"):
        read_image(path)


def test_every_truncation_of_a_header_is_refused(tmp_path: Path) -> None:
    for size in range(len(GOOD)):
        with pytest.raises((InputError, MissingExtraError)):
            read_image(write(tmp_path, GOOD[:size]))


@pytest.mark.parametrize("kind", [b"P1", b"P2", b"P3", b"P4", b"P5"])
def test_refuses_other_kinds_of_pnm(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(InputError, match=kind.decode()):
        read_image(write(tmp_path, kind + GOOD[2:]))


def test_refuses_what_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_image(tmp_path / "nothing.ppm")
    with pytest.raises(InputError, match="no regular file"):
        read_image(tmp_path)
    monkeypatch.setattr(image_file, "MAX_FILE_BYTES", 10)
    with pytest.raises(InputError, match="at most"):
        read_image(write(tmp_path, GOOD))


def test_other_formats_need_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"smolvla-edge\[viz\]"):
        read_image(write(tmp_path, b"\x89PNG\r\n\x1a\n", "image.png"))
    read_image(write(tmp_path, GOOD))


class TestPillow:
    """What needs the extra viz."""

    @pytest.fixture(autouse=True)
    def pillow(self) -> None:
        pytest.importorskip("PIL")

    def save(self, path: Path, mode: str = "RGB", **options: object) -> Path:
        from PIL import Image

        Image.fromarray(PIXELS).convert(mode).save(path, **options)
        return path

    @pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff"])
    def test_lossless_formats_give_the_same_pixels(self, tmp_path: Path, name: str) -> None:
        np.testing.assert_array_equal(read_image(self.save(tmp_path / name)), PIXELS)

    def test_palette(self, tmp_path: Path) -> None:
        from PIL import Image

        picture = Image.fromarray(PIXELS).quantize(16)
        picture.save(tmp_path / "p.png")
        wanted = np.array(picture.convert("RGB"))
        np.testing.assert_array_equal(read_image(tmp_path / "p.png"), wanted)

    @pytest.mark.parametrize("mode", ["L", "1", "I;16"])
    def test_refuses_grey(self, tmp_path: Path, mode: str) -> None:
        from PIL import Image

        if mode == "I;16":
            Image.fromarray(PIXELS[..., 0].astype(np.uint16)).save(tmp_path / "g.png")
        else:
            self.save(tmp_path / "g.png", mode)
        with pytest.raises(InputError, match="colour"):
            read_image(tmp_path / "g.png")

    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_refuses_transparency_with_the_remedy(self, tmp_path: Path, mode: str) -> None:
        with pytest.raises(InputError, match=r"convert\('RGB'\)"):
            read_image(self.save(tmp_path / "t.png", mode))

    def test_refuses_cmyk(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="CMYK"):
            read_image(self.save(tmp_path / "c.jpg", "CMYK"))

    def test_refuses_an_animation(self, tmp_path: Path) -> None:
        from PIL import Image

        frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
        frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
        with pytest.raises(InputError, match="2 frames"):
            read_image(tmp_path / "a.png")

    def test_applies_the_orientation_of_exif(self, tmp_path: Path) -> None:
        from PIL import Image

        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was turned: rotate 90 degrees clockwise to show
        self.save(tmp_path / "e.png", exif=exif)
        upright = np.rot90(PIXELS, -1)
        np.testing.assert_array_equal(read_image(tmp_path / "e.png"), upright)

    def test_a_bomb_is_refused_before_it_is_decoded(self, tmp_path: Path) -> None:
        header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
        import zlib

        def chunk(kind: bytes, data: bytes) -> bytes:
            crc = struct.pack(">I", zlib.crc32(kind + data))
            return struct.pack(">I", len(data)) + kind + data + crc

        bomb = (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", header)
            + chunk(b"IDAT", b"")
            + chunk(b"IEND", b"")
        )
        with pytest.raises(InputError, match=r"60000|too large"):
            read_image(write(tmp_path, bomb, "bomb.png"))

    def test_damage_is_an_input_error(self, tmp_path: Path) -> None:
        good = self.save(tmp_path / "a.png").read_bytes()
        refusals = 0
        for size in range(len(good)):
            try:  # what was lost at the very end may be a checksum: then every pixel is there
                frame = read_image(write(tmp_path, good[:size], "cut.png"))
                np.testing.assert_array_equal(frame, PIXELS)
            except InputError:
                refusals += 1
        assert refusals > len(good) // 2

    def test_text_is_no_image(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="none of these"):
            read_image(write(tmp_path, b"hello", "a.png"))


@pytest.mark.parametrize(("name", "shape"), [("coffee", (400, 600, 3)), ("cat", (300, 451, 3))])
def test_the_photographs_are_the_licensed_ones(name: str, shape: tuple[int, int, int]) -> None:
    assets = files("smolvla_edge") / "assets"
    data = (assets / f"{name}.ppm").read_bytes()
    assert hashlib.sha256(data).hexdigest() in (assets / "LICENSES.md").read_text()
    with pytest.MonkeyPatch.context() as patch:  # without Pillow, as on a plain installation
        patch.setitem(sys.modules, "PIL", None)
        frame = read_image(str(assets / f"{name}.ppm"))
    assert frame.shape == shape
    assert len(np.unique(frame.reshape(-1, 3), axis=0)) > 10_000  # a real photograph
