"""DLPack capsules made by hand, right and wrong ones, that count how often they are deleted."""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p, py_object
from typing import Any

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
READ_ONLY, IS_COPIED = 1, 2
TYPES = {  # code, bits
    "float32": (2, 32), "bfloat16": (4, 16), "float16": (2, 16), "float64": (2, 64),
    "int8": (0, 8), "uint8": (1, 8), "int32": (0, 32), "int64": (0, 64), "bool": (6, 8),
}  # fmt: skip


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", ctypes.POINTER(c_int64)),
        ("strides", ctypes.POINTER(c_int64)),
        ("byte_offset", c_uint64),
    ]


class _Managed(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("context", c_void_p), ("deleter", c_void_p)]


class _Versioned(ctypes.Structure):
    _fields_ = [
        ("major", c_uint32),
        ("minor", c_uint32),
        ("context", c_void_p),
        ("deleter", c_void_p),
        ("flags", c_uint64),
        ("tensor", _Tensor),
    ]


_DELETER = ctypes.CFUNCTYPE(None, c_void_p)
_DESTRUCTOR = ctypes.CFUNCTYPE(None, c_void_p)
_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = py_object, [c_void_p, ctypes.c_char_p, _DESTRUCTOR]
_valid = ctypes.pythonapi.PyCapsule_IsValid
_valid.restype, _valid.argtypes = ctypes.c_int, [c_void_p, ctypes.c_char_p]
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = c_void_p, [c_void_p, ctypes.c_char_p]

_alive: dict[int, Any] = {}  # producers by the address of their struct, until its deleter ran
_structs: dict[int, Any] = {}  # kept for ever: a deleter that runs twice finds what it needs


@_DELETER
def _delete(address):
    _structs[address].deletions.append(address)
    _alive.pop(address, None)


@_DESTRUCTOR
def _destroy(capsule):
    """What every producer's capsule does that nobody took over: delete."""
    for name in (b"dltensor", b"dltensor_versioned"):
        if _valid(capsule, name):
            _delete(_pointer(capsule, name))


class Producer:
    """An object with `__dlpack__`. Every argument is what the capsule says, true or not.

    `version` None: the struct of before version 1. `knows_versions` False: `__dlpack__` refuses
    max_version, as old libraries do. strides None: rows without gaps.
    """

    def __init__(
        self, shape, dtype="float32", *, strides=None, device=(CUDA, 0), version=(1, 0), flags=0,
        byte_offset=0, data=0x10000, lanes=1, ndim=None, knows_versions=True, name=None, owner=None,
    ):  # fmt: skip
        self.shape, self.strides, self.dtype = tuple(shape), strides, dtype
        self.device, self.version, self.flags, self.data = device, version, flags, data
        self.byte_offset, self.lanes, self.ndim = byte_offset, lanes, ndim
        self.knows_versions, self.name, self.owner = knows_versions, name, owner
        self.deletions: list[int] = []
        self.asked: list[dict[str, Any]] = []  # how __dlpack__ was called

    @property
    def deleted(self) -> int:
        """How often deleters ran."""
        return len(self.deletions)

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **asked):
        self.asked.append(asked)
        if "max_version" in asked and not self.knows_versions:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        return self.capsule()

    def capsule(self):
        code, bits = TYPES.get(self.dtype, self.dtype)
        made = _Versioned() if self.version else _Managed()
        made.deletions = self.deletions
        made.shape_kept = (c_int64 * max(len(self.shape), 1))(*self.shape)
        tensor = made.tensor
        tensor.data, tensor.byte_offset = self.data or None, self.byte_offset
        tensor.device_type, tensor.device_id = self.device
        tensor.ndim = len(self.shape) if self.ndim is None else self.ndim
        tensor.code, tensor.bits, tensor.lanes = code, bits, self.lanes
        tensor.shape = ctypes.cast(made.shape_kept, ctypes.POINTER(c_int64))
        if self.strides is not None:
            made.strides_kept = (c_int64 * max(len(self.strides), 1))(*self.strides)
            tensor.strides = ctypes.cast(made.strides_kept, ctypes.POINTER(c_int64))
        made.deleter = ctypes.cast(_delete, c_void_p).value
        if self.version:
            made.major, made.minor = self.version
            made.flags = self.flags
        address = ctypes.addressof(made)
        _alive[address], _structs[address] = self, made
        return _new(
            address, self.name or (b"dltensor_versioned" if self.version else b"dltensor"), _destroy
        )
