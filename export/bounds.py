"""How far an export may be from its reference, and why so far.

An error is the largest |difference| over the largest magnitude of the tensor; in robot units each
joint is by itself, and its range counts if that is more than its magnitude. A ratio in decibels
(SQNR) is of signal over difference, by their squares.

float32, and codes whose products are float32 ("accuracy_level" 0):
    The two differ by the order of sums alone. End to end 1e-4 is promised. Image tokens get half
    of that, so that what the rest adds has room. The letterbox differs by where a pixel is read: a
    coordinate is a float32 up to the longest side n, so it is off by n * 2^-23, and so is the pixel
    at an edge of full height, as a part of that height.
float16:
    Rounding to 11 bits is 77 dB below what is rounded. A few hundred roundings, independent and on
    one residual stream, are 25 dB more: 52 dB. 40 leaves a factor of 4 for what layers amplify.
rows rounded to int8 (4-bit products in our library, 8-bit ones of the form `integer`):
    Off by an even error of half a step of largest / 127: of rows whose largest value is 10 times
    their root mean square, 33 dB below them. Ten such errors of equal size at the actions are 10 dB
    more. 20 is the floor: a wrong kernel is near 0.
"""

from __future__ import annotations

PIXELS = "pixels"
IMAGE_TOKENS = "image tokens"
KEYS_VALUES = "keys and values"
NORMALIZED = "actions, normalised"
ROBOT = "actions, robot units"
STAGES = (PIXELS, IMAGE_TOKENS, KEYS_VALUES, NORMALIZED, ROBOT)

FLOAT32 = {IMAGE_TOKENS: 5e-5, KEYS_VALUES: 1e-4, NORMALIZED: 1e-4, ROBOT: 1e-4}
FLOAT16_DB = 40.0
POLICY_GRAPH = 1e-4  # `policy` against the three graphs: their letterboxes differ
CUSTOM_FLOAT32 = 1e-5  # our library against standard ONNX, without 4-bit products
ROUNDED_ROWS_DB = 20.0


def pixels_bound(longest: int) -> float:
    """longest: side of a frame, in pixels."""
    return longest * 2.0**-23
