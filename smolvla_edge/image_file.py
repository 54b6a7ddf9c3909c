"""Reading a photograph from a file into the frame a camera would give: uint8 [H, W, 3] RGB.

Binary PPM (P6) is read here, so that a plain installation can run on image files; every other
format goes through Pillow (extra `viz`). What is no colour photograph is refused, not converted:
grey, transparency and CMYK have no single right conversion to what the policy was trained on.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.errors import InputError, MissingExtraError

# A frame larger than any camera's is a mistake or an attack on memory: 50 megapixels are 150 MB.
MAX_PIXELS = 50_000_000
MAX_SIDE = 16_384
MAX_FILE_BYTES = 256 << 20
PILLOW_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_MAX_PPM_HEADER_BYTES = 4096
_SPACE = b" \t\n\v\f\r"

Frame = NDArray[np.uint8]


def read_image(path: str | os.PathLike[str]) -> Frame:
    """The image in `path` as uint8 [H, W, 3] RGB, upright (EXIF orientation applied).

    Raises InputError for a file that is missing, malformed, too large, grey, transparent or
    animated; MissingExtraError for a format other than PPM when Pillow is not installed.
    """
    path = Path(path)
    data = _read_bytes(path)
    if data[:2] == b"P6":
        return _parse_ppm(data, path)
    if data[:1] == b"P" and data[1:2].isdigit() and data[2:3].strip() in (b"", b"#"):
        raise InputError(
            f"{path}: expected a binary colour PPM (P6), got {data[:2].decode()} (grey, bitmap or "
            "text). Save the picture as a colour PNG, JPEG or P6 file"
        )
    return _read_with_pillow(path)


def _read_bytes(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise InputError(
                f"{path}: expected an image file, got "
                f"{'no regular file' if path.exists() else 'nothing: it does not exist'}"
            )
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise InputError(
                f"{path}: expected an image of at most {MAX_FILE_BYTES >> 20} MiB, got "
                f"{size >> 20} MiB. Scale it down to the camera's resolution"
            )
        return path.read_bytes()
    except OSError as cause:
        raise InputError(f"{path}: cannot be read: {cause.strerror or cause}") from cause


def _parse_ppm(data: bytes, path: Path) -> Frame:
    """Strict P6: decimal sizes, maxval 255, exactly the pixels announced."""
    position, numbers = 2, []
    for what in ("width", "height", "maximal value"):
        number, position = _ppm_number(data, position, what, path)
        numbers.append(number)
    width, height, maximum = numbers
    _check_size(width, height, path)
    if maximum != 255:
        raise InputError(f"{path}: expected 8-bit samples (maximal value 255), got {maximum}")
    if data[position : position + 1] not in tuple(bytes([c]) for c in _SPACE):
        raise InputError(f"{path}: expected one white space between the PPM header and the pixels")
    position += 1
    expected = width * height * 3
    if len(data) - position != expected:
        raise InputError(
            f"{path}: expected {expected} bytes of pixels for {width} x {height}, got "
            f"{len(data) - position}. The file is cut off or damaged, or holds several images"
        )
    pixels = np.frombuffer(data, np.uint8, expected, position)
    return pixels.reshape(height, width, 3).copy()


def _ppm_number(data: bytes, position: int, what: str, path: Path) -> tuple[int, int]:
    """The next decimal number after at least one white space or comment -> (number, end)."""
    start = position
    while position < min(len(data), _MAX_PPM_HEADER_BYTES):
        if data[position] in _SPACE:
            position += 1
        elif data[position] == ord("#"):
            newline = data.find(b"\n", position, _MAX_PPM_HEADER_BYTES)
            position = len(data) if newline < 0 else newline + 1
        else:
            break
    end = position
    while end < len(data) and end - position < 10 and data[end : end + 1].isdigit():
        end += 1
    if start == position or end == position:
        raise InputError(f"{path}: malformed PPM header: expected the {what} as a decimal number")
    return int(data[position:end]), end


def _check_size(width: int, height: int, path: Path) -> None:
    too_large = width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_PIXELS
    if width < 1 or height < 1 or too_large:
        raise InputError(
            f"{path}: expected sides from 1 to {MAX_SIDE} and at most {MAX_PIXELS // 1_000_000} "
            f"megapixels, got {width} x {height}. Scale it to the camera's resolution"
        )


def _read_with_pillow(path: Path) -> Frame:
    try:
        from PIL import Image, ImageOps
    except ImportError as cause:
        raise MissingExtraError(
            f"{path} is no binary PPM, and other formats need Pillow, which is not installed: "
            "pip install 'smolvla-edge[viz]', or save the picture as a P6 PPM"
        ) from cause
    try:
        with warnings.catch_warnings():
            # Our own limit, checked before any pixel is decoded, is below Pillow's.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=PILLOW_FORMATS)
        with image:
            width, height = image.size
            _check_size(width, height, path)
            _check_colour(image, path)
            upright = ImageOps.exif_transpose(image)
            return np.array(upright.convert("RGB"), np.uint8)
    except InputError:
        raise
    except Image.UnidentifiedImageError as cause:
        raise InputError(
            f"{path}: expected an image ({', '.join(PILLOW_FORMATS)} or binary PPM), got a file "
            "that is none of these"
        ) from cause
    except (Image.DecompressionBombError, MemoryError) as cause:
        raise InputError(f"{path}: the image is too large: {cause}") from cause
    except Exception as cause:  # decoders raise SyntaxError, ValueError, struct.error, OSError ...
        raise InputError(f"{path}: the image is damaged or cut off: {cause}") from cause


def _check_colour(image: Any, path: Path) -> None:
    if getattr(image, "n_frames", 1) != 1:
        raise InputError(f"{path}: expected one picture, got {image.n_frames} frames. Save one")
    mode = image.mode
    if "transparency" in image.info or mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        raise InputError(
            f"{path}: expected a picture without transparency, got mode {mode} with an alpha "
            "channel: what shines through is not in the file. Flatten it, in Python: "
            f"PIL.Image.open({str(path)!r}).convert('RGB').save('flat.png')"
        )
    if mode not in ("RGB", "P"):
        kind = "a grey picture" if mode in ("1", "L", "I", "F") or ";" in mode else "a picture"
        raise InputError(
            f"{path}: expected a colour picture (RGB, 8 bits), got {kind} of mode {mode}. The "
            "policy was trained on RGB frames: take one from the camera in colour"
        )
