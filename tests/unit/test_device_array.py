"""Reading other libraries' arrays: what they say, who deletes them, what is refused. Needs no GPU:
`_core.DeviceArray` looks at what a library says about its memory, never at the memory."""

from __future__ import annotations

import gc

import pytest
from capsule_helpers import CPU, CUDA, CUDA_HOST, CUDA_MANAGED, IS_COPIED, READ_ONLY, Producer

from smolvla_edge.backends.native import load_core
from smolvla_edge.errors import InputError

read = load_core().DeviceArray
VERSIONS = pytest.mark.parametrize(
    "version", [(1, 0), (1, 7), None], ids=["v1.0", "v1.7", "legacy"]
)


@VERSIONS
def test_what_a_capsule_says(version):
    x = Producer(
        (50, 720), "bfloat16", strides=(768, 1), version=version, data=4096, byte_offset=32
    )
    array = read(x)
    assert (array.data, array.shape, array.strides) == (4096 + 32, (50, 720), (768, 1))
    assert (array.dtype, array.device, array.pinned) == ("bfloat16", 0, False)
    assert not array.read_only and array.producer_stream == 0
    assert repr(array) == "bfloat16 [50, 720] with strides [768, 1] on cuda:0"


@pytest.mark.parametrize(
    "dtype", ["float32", "float16", "float64", "int8", "uint8", "int32", "int64", "bool"]
)
def test_dtypes(dtype):
    assert read(Producer((3,), dtype)).dtype == dtype


def test_strides_may_be_missing_and_a_number_has_none():
    assert read(Producer((4, 3, 5), version=None)).strides == (15, 5, 1)
    assert read(Producer((4, 0, 5))).strides == (5, 5, 1)
    number = read(Producer((), "int32"))
    assert (number.shape, number.strides) == ((), ())


@pytest.mark.parametrize(
    ("device", "pinned", "index"),
    [((CUDA, 3), False, 3), ((CUDA_MANAGED, 1), False, 1), ((CUDA_HOST, 0), True, -1)],
)
def test_where_memory_may_be(device, pinned, index):
    array = read(Producer((2, 2), device=device))
    assert (array.pinned, array.device) == (pinned, index)


def test_flags():
    assert read(Producer((2,), flags=READ_ONLY)).read_only
    assert read(Producer((2,), flags=IS_COPIED)).read_only  # what is written there is lost


@VERSIONS
def test_the_deleter_runs_once_and_with_the_last_owner(version):
    x = Producer((2, 2), version=version)
    array = read(x)
    gc.collect()
    assert x.deleted == 0
    del array
    gc.collect()
    assert x.deleted == 1


@VERSIONS
def test_the_deleter_runs_once_after_a_refusal(version):
    x = Producer((2, 2), strides=(-2, 1), version=version)
    with pytest.raises(InputError, match="strides"):
        read(x)
    gc.collect()
    assert x.deleted == 1


def test_a_capsule_is_taken_over_once():
    x = Producer((2, 2))
    twice = [x.capsule()]
    x.capsule = lambda: twice[0]
    first = read(x)
    with pytest.raises(InputError, match="fresh capsule, got used_dltensor_versioned"):
        read(x)
    twice.clear()
    del first
    gc.collect()
    assert x.deleted == 1


def test_another_major_version_is_only_deleted():
    x = Producer((2, 2), version=(2, 0))
    with pytest.raises(InputError, match=r"x: expected DLPack of version 1, got 2\.0"):
        read(x)
    gc.collect()
    assert x.deleted == 1


@pytest.mark.parametrize(
    ("stream", "told"), [(-1, -1), (1, 1), (0x1234, 0x1234)], ids=["same", "legacy", "other"]
)
def test_what_the_producer_is_asked(stream, told):
    x = Producer((2,))
    read(x, stream=stream)
    assert x.asked == [{"stream": told, "max_version": (1, 0)}]


def test_a_producer_from_before_versions():
    x = Producer((2,), version=None, knows_versions=False)
    read(x, stream=7)
    assert [set(asked) for asked in x.asked] == [{"stream", "max_version"}, {"stream"}]


def test_of_pinned_memory_no_stream_is_asked():
    x = Producer((2,), device=(CUDA_HOST, 0))
    read(x, stream=7)
    assert x.asked[0]["stream"] is None


BIG = 2**62
REFUSED = {
    "cpu": ({"shape": (2,), "device": (CPU, 0)}, "a CUDA GPU, got one in the CPU's memory"),
    "rocm": ({"shape": (2,), "device": (10, 0)}, "device type 10"),
    "complex": ({"shape": (2,), "dtype": (5, 64)}, "code 5 of 64 bits"),
    "float8": ({"shape": (2,), "dtype": (10, 8)}, "code 10 of 8 bits"),
    "lanes": ({"shape": (2,), "lanes": 4}, "in 4 lanes"),
    "rank": ({"shape": (1,) * 9}, "0 to 8 dimensions, got 9"),
    "negative rank": ({"shape": (2,), "ndim": -1}, "dimensions, got -1"),
    "negative size": (
        {"shape": (2, -3), "strides": (3, 1)},
        r"sizes of 0 or more, got shape \[2, -3\]",
    ),
    "negative strides": (
        {"shape": (2, 3), "strides": (3, -1)},
        r"strides of 0 or more, got \[3, -1\]",
    ),
    "endless": ({"shape": (BIG, BIG), "strides": (1, 1)}, "reaches beyond memory"),
    "endless, compact": ({"shape": (BIG, BIG)}, "more than memory has"),
    "far": ({"shape": (2, 2), "strides": (BIG, 1)}, "reaches beyond memory"),
    "null": ({"shape": (2,), "data": 0}, "null pointer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_arrays(case):
    given, message = REFUSED[case]
    x = Producer(**given)
    with pytest.raises(InputError, match=message) as caught:
        read(x, name="weight")
    assert str(caught.value).startswith("weight: ")
    gc.collect()
    assert x.deleted == len(x.asked)


def test_a_capsule_of_something_else_is_left_alone():
    x = Producer((2,), name=b"something")
    with pytest.raises(InputError, match="fresh capsule, got something"):
        read(x)
    gc.collect()
    assert x.deleted == 0


def test_an_empty_array_needs_no_memory():
    assert read(Producer((0, 4), data=0)).shape == (0, 4)


def test_what_libraries_raise_becomes_ours():
    class Raises(Producer):
        def __dlpack__(self, **asked):
            raise BufferError("requires grad")

    with pytest.raises(InputError, match=r"x: __dlpack__ of this array failed: .*requires grad"):
        read(Raises((2,)))

    class NoCapsule(Producer):
        def __dlpack__(self, **asked):
            return 3

    with pytest.raises(InputError, match=r"fresh capsule, got .*int"):
        read(NoCapsule((2,)))

    class Interrupted(Producer):
        def __dlpack__(self, **asked):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read(Interrupted((2,)))

    class OddDevice(Producer):
        def __dlpack_device__(self):
            return "cuda:0"

    with pytest.raises(InputError, match="__dlpack_device__ of this array"):
        read(OddDevice((2,)))


def test_what_is_no_array():
    with pytest.raises(InputError, match=r"x: expected an array with __dlpack__ or .* got .*list"):
        read([1.0, 2.0])


# --- __cuda_array_interface__ ---------------------------------------------------------------------


class Interface:
    def __init__(self, **changes):
        said = {"shape": (2, 3), "typestr": "<f4", "data": (256, False), "version": 3} | changes
        self.__cuda_array_interface__ = {k: v for k, v in said.items() if v != "absent"}


def test_what_an_interface_says():
    array = read(Interface(strides=(16, 4), stream=9))
    assert (array.data, array.shape, array.strides) == (256, (2, 3), (4, 1))
    assert (array.dtype, array.device, array.producer_stream) == ("float32", -1, 9)
    array = read(Interface(typestr="|i1", data=(256, True), strides=None, stream=None, version=2))
    assert (array.dtype, array.strides, array.read_only) == ("int8", (3, 1), True)


def test_an_interface_keeps_its_object():
    x = Interface()
    array = read(x)
    import weakref

    alive = weakref.ref(x)
    del x
    gc.collect()
    assert alive() is not None
    del array
    gc.collect()
    assert alive() is None


def test_dlpack_comes_first():
    both = Producer((5,), "bfloat16")
    both.__cuda_array_interface__ = Interface().__cuda_array_interface__
    assert read(both).shape == (5,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 1}, "version 2 or 3, got 1"),
        ({"version": 4}, "version 2 or 3, got 4"),
        ({"version": "absent"}, "version"),
        ({"mask": object()}, "without a mask"),
        ({"typestr": "<V2"}, "bfloat16 can be passed through __dlpack__"),
        ({"typestr": ">f4"}, "got >f4"),
        ({"shape": (2, -3)}, "sizes of 0 or more"),
        ({"shape": "two"}, "wrong type"),
        ({"strides": (12, 2)}, "whole elements, got 2 bytes"),
        ({"strides": (-12, 4)}, "strides of 0 or more"),
        ({"strides": (4,)}, "2 strides, got 1"),
        ({"data": (0, False)}, "null pointer"),
        ({"data": "absent"}, "data"),
        ({"shape": (1,) * 9}, "0 to 8 dimensions"),
    ],
)  # fmt: skip
def test_refused_interfaces(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        read(Interface(**changes))
    assert str(caught.value).startswith("x: ")


def test_an_array_of_the_class_needs_its_init():
    from smolvla_edge.errors import BackendError

    with pytest.raises(BackendError, match="__init__ never ran"):
        _ = read.__new__(read).shape
