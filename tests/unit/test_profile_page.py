"""The page: well-formed, complete, escaped, and without anything from anywhere else."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from profile_helpers import CEILING, US, op, raw_call

from smolvla_edge.profile.page import render
from smolvla_edge.profile.records import GROUPS, build_call
from smolvla_edge.profile.timeline import LANES, chart_y, color_class

_VOID = {"meta", "br", "img", "link", "input", "hr"}
NASTY = "</title><script>alert(1)</script>&\"'"


class Page(HTMLParser):
    """Checks nesting while it collects elements, their attributes and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def call():
    return build_call(1000 * US, 2000 * US, raw_call())


def page(call, title="One call", facts=None) -> tuple[Page, str]:
    text = render(call, CEILING, title, {"kernels": "abacus"} if facts is None else facts)
    return Page(text), text


def test_every_operation_and_stage_is_there_once(call):
    parsed, _ = page(call)
    facts = parsed.texts["title"][1:]  # the first is the document's
    assert len(facts) == len(call.ops) + len(call.stages)
    for o in call.ops:
        assert sum(text.startswith(f"{o.name}\n{o.kind}, {o.shape}\n") for text in facts) >= 1
    for s in call.stages:
        assert sum(text.startswith(f"{s.name}\n") for text in facts) == 1
    one = next(text for text in facts if text.startswith("expert.layers.2.mlp.up"))
    assert "0.2000 ms" in one and "2.0 GFLOP/s, 50% of the bfloat16 ceiling" in one


def test_places_are_to_scale(call):
    parsed, _ = page(call)
    rects = [r for r in parsed.all("rect") if (r.get("x") or "").endswith("%")]
    places = {(float(r["x"][:-1]), float(r["width"][:-1])) for r in rects}
    for item in [*call.stages, *call.ops]:
        x, width = (item.start - call.start) / 1e4, item.duration / 1e4  # of 1000 us, in percent
        assert any(abs(x - a) < 1e-4 and abs(width - b) < 1e-4 for a, b in places), item.start
    assert all(x >= 0 and x + width <= 100 + 1e-4 for x, width in places)


def test_the_share_is_the_height_of_its_bar(call):
    parsed, _ = page(call)
    heights = [float(r["height"]) for r in parsed.all("rect")]
    for share in (0.5, 1.0, 90 / 150 / 2):
        assert any(abs(h - (chart_y(0) - chart_y(share))) < 0.11 for h in heights)
    assert chart_y(7.0) == chart_y(1.05) < chart_y(1.0)  # a bar never leaves the chart


def test_tables_say_what_the_summary_says(call):
    parsed, _ = page(call)
    cells = parsed.texts["td"]
    for text in ("wall time of the call", "1.000", "vision.layers.*.attn.q+k", "flow, 2 steps"):
        assert text in cells
    assert "abacus" in parsed.texts["dd"]
    assert len(parsed.all("table")) == 4


def test_names_are_escaped():
    raw = raw_call()
    raw["ops"][3] = {**raw["ops"][3], "weight": NASTY + ".weight"}
    call = build_call(1000 * US, 2000 * US, raw)
    parsed, text = page(call, title=NASTY, facts={NASTY: NASTY})
    assert text.count("<script>") == 1 and text.count("</script>") == 1
    assert NASTY in parsed.texts["h1"] and NASTY in parsed.texts["dd"]
    assert any(t.startswith(NASTY) for t in parsed.texts["title"])


def test_nothing_comes_from_elsewhere(call):
    parsed, text = page(call)
    for tag in ("link", "img", "iframe", "object", "embed", "base"):
        assert parsed.all(tag) == []
    assert all("src" not in a and "href" not in a for _, a in parsed.elements)
    # The one address is the name of SVG in the script, which nothing fetches.
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in text and "url(" not in text
    for word in ("fetch(", "XMLHttpRequest", "WebSocket", "import("):
        assert word not in text


def test_every_lane_and_colour_has_a_style(call):
    parsed, text = page(call)
    for lane in LANES:
        assert lane in parsed.texts["div"]
    for name in (*GROUPS, "preprocess", "vision", "prefix", "step"):
        assert f".{color_class(name)} {{" in text, name


def test_a_call_without_operations():
    call = build_call(0, 10, {"overwritten": 0, "stages": [], "ops": []})
    parsed, _ = page(call)
    assert "wall time of the call" in parsed.texts["td"]


def test_a_kind_that_is_not_known_here_is_drawn():
    raw = raw_call()
    raw["ops"][4] = op("fft", 1720, 1730)
    raw["ops"][6] = op("flow_update", 1940, 1950)
    call = build_call(1000 * US, 2000 * US, raw)
    parsed, _ = page(call)
    assert any("fft" in text for text in parsed.texts["title"])
