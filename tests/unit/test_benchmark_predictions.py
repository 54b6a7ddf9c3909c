"""Predictions by hand, that their parts add up, and that the page is the one its command makes."""

from __future__ import annotations

from dataclasses import replace

import benchmark_helpers  # noqa: F401  (puts the repository on the path)
import pytest
from test_benchmark_flops import model_of

from benchmarks import predict, predict_cpu
from benchmarks.devices import DEVICES
from benchmarks.flops import exact_flops
from benchmarks.operations import PRECISIONS, Operation, operations
from benchmarks.roofline import (
    ASSUMED,
    REASONS,
    busy,
    floor_us,
    predicted_us,
    times_of,
    traffic,
)

ORIN = next(d for d in DEVICES if "AGX" in d.name)
H100 = next(d for d in DEVICES if "H100" in d.name)


def linear(rows, depth, columns, bits=16, unit="bfloat16", activations=0.0):
    return Operation("flow", "x", "linear", 1, rows, unit, 2.0 * rows * depth * columns,
                     columns * depth * bits / 8, activations, columns, bits)  # fmt: skip


def test_the_floor_is_the_larger_of_work_and_traffic_by_hand():
    # 1.07e9 multiply-adds against 2.1 MB: 42.6 TFLOP/s takes 50.4 us, 204.8 GB/s 10.2.
    much = linear(1024, 1024, 1024)
    assert floor_us(much, ORIN) == pytest.approx(2 * 1024**3 / 42.6e12 * 1e6)
    little = linear(8, 1024, 1024)
    assert floor_us(little, ORIN) == pytest.approx(2 * 1024**2 / 204.8e9 * 1e6)
    assert floor_us(replace(much, unit="int8"), ORIN) == pytest.approx(2 * 1024**3 / 85e12 * 1e6)


def test_tiles_and_waves():
    # 50 rows cost 64, 720 columns are 23 tiles of 32: on 16 processors two waves of 16.
    assert busy(linear(50, 960, 720), 16) == pytest.approx(50 / 64 * 23 / 32)
    assert busy(linear(1024, 768, 3072), 16) == 1.0
    assert busy(linear(50, 720, 1600, bits=4), 16) == 50 / 56  # tokens by eight, columns dealt out


def test_operands_that_fit_in_the_l2_are_no_traffic_and_weights_always_are():
    small, large = linear(8, 64, 64, activations=1e6), linear(8, 64, 64, activations=3e6)
    assert traffic(small, ORIN) == small.weight_bytes
    assert traffic(large, ORIN) == large.weight_bytes + 3e6
    assert traffic(large, H100) == large.weight_bytes


def test_a_kernel_takes_its_time_and_one_that_rides_along_takes_no_start():
    empty = Operation("flow", "x", "rms_norm", 1, 1)
    assert predicted_us(empty, H100) == ASSUMED.shortest_us + H100.node_us
    assert predicted_us(replace(empty, rides=True), H100) == 0.0
    assert times_of([empty, replace(empty, rides=True)], H100).launches == 1


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=lambda p: p.name)
def test_stages_add_up_and_nothing_is_predicted_below_its_floor(device, precision):
    model = model_of("full")
    listed = operations(model, 2, 12, precision)
    for o in listed:
        assert predicted_us(o, device) >= floor_us(o, device), o.name
    found = predict.stages(model, 2, precision, device)
    for name in ("floor", "predicted", "launches"):
        parts = [getattr(t, name) for stage, t in found.items() if stage != "total"]
        assert getattr(found["total"], name) == pytest.approx(sum(parts))
    operations_ms = sum(o.calls * predicted_us(o, device) for o in listed) * 1e-3
    graphs = (2 + 1 + model.num_steps) * ASSUMED.graph_us * 1e-3
    assert found["total"].predicted == pytest.approx(operations_ms + graphs)
    assert found["total"].launches == sum(o.kernels for o in listed)


def test_the_cpus_floor_is_flops_over_the_loop():
    model = model_of("full")
    row = predict_cpu.MEASURED[1]  # float32 alone: one ceiling
    floors = predict_cpu.floors(model, row)
    want = exact_flops(model, row.cameras, row.words)
    for stage in ("vision", "prefix", "flow", "total"):
        assert floors[stage] == pytest.approx(want[stage] / 575e6)


def test_every_device_names_its_sources_and_every_assumption_its_reason():
    assert all(device.sources for device in DEVICES)
    assert REASONS.keys() == vars(ASSUMED).keys()


def test_the_page_is_what_the_command_makes_and_every_table_says_what_it_is():
    text = predict.page(model_of("full"))
    if not predict.PAGE.is_file():
        pytest.skip("the tests run outside of the source folder")
    assert predict.PAGE.read_text() == text, "python -m benchmarks.predict --write"
    headings = [line for line in text.splitlines() if line.startswith("##")]
    tabled = [h for h, part in zip(headings, text.split("\n## ")[1:], strict=False) if "|" in part]
    assert text.splitlines()[2].startswith("**Nothing on this page was measured on a GPU.**")
    for heading in tabled:
        said = heading.lower()
        assert any(word in said for word in ("predicted", "devices", "assumptions", "method"))


def test_the_command_prints_one_device(capsys):
    assert predict.main(["--device", "thor", "--cameras", "1"]) == 0
    out = capsys.readouterr().out
    assert out.count("Predicted: Jetson Thor") == 1 and "gate and up" in out
    with pytest.raises(SystemExit):
        predict.main(["--device", "abacus"])
