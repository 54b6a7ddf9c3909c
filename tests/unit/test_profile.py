"""From records to tables: a call by hand, whose numbers can be checked in the head."""

from __future__ import annotations

import pytest
from profile_helpers import CEILING, US, linear, op, raw_call, stage

from smolvla_edge.errors import BackendError
from smolvla_edge.profile import tables
from smolvla_edge.profile.records import build_call, short_weight
from smolvla_edge.profile.summary import (
    Account,
    Ceiling,
    account,
    by_kind,
    by_name,
    by_stage,
    in_all,
    share_of_ceiling,
)


@pytest.fixture
def call():
    return build_call(1000 * US, 2000 * US, raw_call())


class TestCall:
    def test_stages(self, call):
        assert [(s.name, s.duration // US, len(s.ops)) for s in call.stages] == [
            ("vision 0", 400, 3),
            ("step 0", 220, 2),  # to the end of its flow_update
            ("step 1", 230, 2),  # to the end of the flow
        ]
        assert [s.between // US for s in call.stages] == [40, 10, 20]

    def test_a_look_ahead_is_no_step(self):
        raw = raw_call()
        raw["ops"][-1:] = [
            op("flow_update", 1940, 1942), op("compare", 1942, 1944), op("flow_update", 1944, 1950)
        ]  # fmt: skip
        steps = build_call(1000 * US, 2000 * US, raw).stages[1:]
        assert [(s.name, len(s.ops)) for s in steps] == [("step 0", 2), ("step 1", 4)]

    def test_names(self, call):
        assert [o.name for o in call.ops] == [
            "vision.layers.0 layer_norm",
            "vision.layers.0.attn.q+k",
            "vision.layers.0 attention",
            "expert.layers.1.mlp.up",
            "flow flow_update",
            "expert.layers.2.mlp.up",
            "flow flow_update",
        ]
        assert call.ops[3].folded == call.ops[5].folded == "expert.layers.*.mlp.up"
        assert call.ops[2].folded == "vision.layers.* attention"

    def test_shapes(self, call):
        assert call.ops[0].shape == "4 x 16"
        assert call.ops[2].shape == "4 x 4 keys, 3 heads of 4"
        gated = op("linear", 0, 1, "w", rows=4, out=16, flops=2 * 4 * 8 * 32, **{"in": 8})
        (made,) = one_stage("prefix", [gated]).ops
        assert made.shape == "4 x 8 -> 2 x 16"

    def test_groups(self, call):
        groups = [o.group for o in call.ops]
        assert groups[:3] == ["norm", "linear", "attention"] and groups[4] == "other"
        (unknown,) = one_stage("prefix", [op("fft", 0, 1)]).ops
        assert unknown.group == "other" and unknown.name == "prefix fft"

    def test_an_operation_between_layers_of_two_towers(self):
        """The prefix projects the expert's keys between its own K and its own attention."""
        text, expert = "text.layers.3.", "expert.layers.3."
        ops = one_stage(
            "prefix",
            [
                op("rms_norm", 0, 1),
                linear(1, 2, text + "attn.q.weight", 1),
                op("rope", 2, 3),
                linear(3, 4, expert + "attn.k.weight", 1),
                op("store_kv", 4, 5),
                op("rope", 5, 6),
                op("attention", 6, 7, heads=1),
                linear(7, 8, text + "attn.o.weight", 1),
            ],
        ).ops
        assert [o.name for o in ops] == [
            "text.layers.3 rms_norm",
            "text.layers.3.attn.q",
            "text.layers.3 rope",
            "expert.layers.3.attn.k",
            "text.layers.3 store_kv",
            "text.layers.3 rope",
            "text.layers.3 attention",
            "text.layers.3.attn.o",
        ]

    def test_a_norm_before_a_layer_without_number(self):
        after = linear(1, 2, "connector.weight", 1)
        ops = one_stage("vision", [op("layer_norm", 0, 1), after]).ops
        assert [o.name for o in ops] == ["connector layer_norm", "connector"]

    @pytest.mark.parametrize(
        ("weights", "name"),
        [
            ("", ""),
            ("connector.weight", "connector"),
            ("computed", "computed"),
            ("a.k.weight+a.v.weight", "a.k+v"),
            ("a.k.weight+b.v.weight", "a.k+b.v"),
        ],
    )
    def test_weights(self, weights, name):
        assert short_weight(weights) == name

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda raw: raw.update(overwritten=3), "3 did not fit"),
            (lambda raw: raw["ops"].append(op("copy", 1501, 1509)), "1 of 8 are in none"),
            (lambda raw: raw["ops"].append(op("copy", 1300, 1310)), "begin after"),
            (lambda raw: raw["ops"].append(op("copy", 1951, 1949)), "begin after"),
            (lambda raw: raw["ops"].append(op("copy", 1990, 2010)), "within the call"),
            (lambda raw: raw["ops"].append(op("copy", 900, 910)), "within the call"),
            (lambda raw: raw["stages"].append(stage("prefix", 1400, 1520)), "begin after"),
        ],
    )
    def test_records_that_make_no_sense_are_refused(self, change, words):
        raw = raw_call()
        change(raw)
        with pytest.raises(BackendError, match=words):
            build_call(1000 * US, 2000 * US, raw)

    def test_a_flow_that_never_ended_a_step(self):
        """A call that was interrupted in its first step."""
        made = one_stage("flow", [linear(1, 2, "action_out.weight", 1)])
        assert made.name == "step 0" and len(made.ops) == 1


def one_stage(kind, ops):
    raw = {"overwritten": 0, "stages": [stage(kind, 0, 10)], "ops": ops}
    (made,) = build_call(0, 10 * US, raw).stages
    return made


class TestSummary:
    def test_the_account_adds_up(self, call):
        assert account(call) == Account(
            wall=1000 * US, operations=780 * US, between=70 * US, engine=10 * US, python=140 * US
        )
        a = account(call)
        assert a.operations + a.between + a.engine + a.python == a.wall == call.duration

    def test_a_call_without_stages_was_python(self):
        call = build_call(0, 500, {"overwritten": 0, "stages": [], "ops": []})
        assert account(call) == Account(500, 0, 0, 0, 500)

    def test_by_kind(self, call):
        rows = {row.name: row for row in by_kind(call, CEILING)}
        assert list(rows) == ["linear", "attention", "layer_norm", "flow_update"]
        linears = rows["linear"]
        assert (linears.calls, linears.ns) == (3, 600 * US)
        # 200 us at half of 2, at all of 4 and at half of 4 a nanosecond.
        assert linears.flops == (200 + 800 + 400) * US
        assert linears.gflops == pytest.approx(1400 / 600)
        # Half, whole, half of the ceiling, each for the same time.
        assert linears.share == pytest.approx((0.5 + 1.0 + 0.5) / 3)
        assert rows["attention"].share == pytest.approx(90 / 150 / 2)
        norm = rows["layer_norm"]
        assert (norm.gflops, norm.share, norm.gbytes) == (None, None, 6.4)
        assert sum(row.ns for row in rows.values()) == account(call).operations

    def test_by_name(self, call):
        rows = by_name(call, CEILING)
        assert [(row.name, row.calls, row.ns // US) for row in rows] == [
            ("vision.layers.0.attn.q+k".replace("0", "*"), 1, 200),
            ("expert.layers.*.mlp.up", 1, 200),
            ("expert.layers.*.mlp.up", 1, 200),
            ("vision.layers.* attention", 1, 150),
            ("flow flow_update", 2, 20),
            ("vision.layers.* layer_norm", 1, 10),
        ]
        # The two of one name have different shapes here, and stay apart.
        assert rows[1].shape != rows[2].shape
        assert sum(row.ns for row in rows) == account(call).operations

    def test_by_stage(self, call):
        vision, flow = by_stage(call, CEILING)
        assert (vision.operations.name, vision.ns, vision.between) == (
            "vision 0",
            400 * US,
            40 * US,
        )
        assert (flow.operations.name, flow.operations.calls) == ("flow, 2 steps", 4)
        assert (flow.ns, flow.between) == (450 * US, 30 * US)
        a = account(call)
        assert vision.ns + flow.ns == a.operations + a.between

    def test_in_all(self, call):
        total = in_all(call, CEILING)
        assert (total.calls, total.ns) == (7, account(call).operations)
        ideal = 200 * 0.5 + 200 * 1.0 + 200 * 0.5 + 45
        assert total.share == pytest.approx(ideal / 780)

    def test_without_a_ceiling_there_is_no_share(self, call):
        unknown = Ceiling({"float32": 2.0}, 2)
        assert share_of_ceiling(call.ops, unknown) is None
        assert share_of_ceiling(call.ops[:3], unknown) is not None

    def test_an_operation_too_short_for_the_clock(self):
        quick = one_stage("prefix", [op("copy", 5, 5, bytes=8), linear(5, 5, "x", 1)])
        assert share_of_ceiling(quick.ops, CEILING) is None
        row = in_all(build_call(0, 10 * US, {"overwritten": 0, "stages": [stage("prefix", 0, 10)],
                     "ops": [op("copy", 5, 5, bytes=8)]}), CEILING)  # fmt: skip
        assert row.gbytes is None


class TestTables:
    def test_rows(self, call):
        wall = call.duration
        assert tables.account_rows(account(call))[-1] == [
            "wall time of the call",
            "1.000",
            "100.0%",
        ]
        first = tables.kind_rows(by_kind(call, CEILING), wall)[0]
        assert first == ["linear", "3", "0.600", "60.0%", "2.3", "67%", "-"]
        stages = tables.stage_rows(by_stage(call, CEILING), wall)
        assert stages[0][:5] == ["vision 0", "3", "0.400", "40.0%", "0.040"]
        total = tables.total_row(in_all(call, CEILING), wall)
        assert total[:4] == ["operations", "7", "0.780", "78.0%"]
        for rows, columns in (
            (tables.kind_rows(by_kind(call, CEILING), wall), tables.KIND_COLUMNS),
            (tables.name_rows(by_name(call, CEILING), wall), tables.NAME_COLUMNS),
            (stages, tables.STAGE_COLUMNS),
            (tables.account_rows(account(call)), tables.ACCOUNT_COLUMNS),
        ):
            assert {len(row) for row in rows} == {len(columns)}
