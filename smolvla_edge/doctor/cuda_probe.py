"""Asks the CUDA driver what it sees, and prints JSON. Run as a program of its own: a broken driver
may crash or hang whoever asks it, and that must not be the doctor. Imports nothing of the package.
"""

from __future__ import annotations

import ctypes
import json
from typing import Any

_LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


def probe() -> dict[str, Any]:
    """{"problem", "code", "cuda", "devices": [{"name", "capability", "memory"}]}."""
    result: dict[str, Any] = {"problem": "", "code": 0, "cuda": None, "devices": []}
    try:
        cuda = ctypes.CDLL(_LIBRARY)
    except OSError as cause:
        # A library that is there and does not load is another matter than one that is not.
        absent = f"{_LIBRARY}: cannot open shared object file: No such file" in str(cause)
        return {**result, "problem": "absent" if absent else str(cause)}
    code = int(cuda.cuInit(0))
    if code != 0:
        return {**result, "problem": _name(cuda, code), "code": code}
    version = ctypes.c_int()
    if cuda.cuDriverGetVersion(ctypes.byref(version)) == 0:
        result["cuda"] = f"{version.value // 1000}.{version.value % 1000 // 10}"
    count = ctypes.c_int()
    code = int(cuda.cuDeviceGetCount(ctypes.byref(count)))
    if code != 0:
        return {**result, "problem": _name(cuda, code), "code": code}
    result["devices"] = [_device(cuda, index) for index in range(count.value)]
    return result


def _device(cuda: Any, index: int) -> dict[str, Any]:
    handle, memory = ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    numbers = [ctypes.c_int(), ctypes.c_int()]
    cuda.cuDeviceGet(ctypes.byref(handle), index)
    cuda.cuDeviceGetName(name, len(name), handle)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
    for number, attribute in zip(numbers, (_MAJOR, _MINOR), strict=True):
        cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, handle)
    return {
        "name": name.value.decode("utf-8", "replace"),
        "capability": f"{numbers[0].value}.{numbers[1].value}",
        "memory": memory.value,
    }


def _name(cuda: Any, code: int) -> str:
    text = ctypes.c_char_p()
    if cuda.cuGetErrorName(code, ctypes.byref(text)) == 0 and text.value:
        return text.value.decode("ascii", "replace")
    return f"error {code}"


if __name__ == "__main__":
    print(json.dumps(probe()))
