"""A search as one HTML file: pictures, the table behind them, nothing from anywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from smolvla_edge.tune import heat_map, pictures
from smolvla_edge.tune.finalists import Finalist
from smolvla_edge.tune.front import measured_front
from smolvla_edge.tune.played import Played
from smolvla_edge.tune.tuning import Tuned

_STYLE = """
body { font: 14px/1.45 system-ui, "DejaVu Sans", sans-serif; color: #1b1f24; background: #fff;
  margin: 24px auto; padding: 0 24px; max-width: 1100px; }
h1 { font-size: 22px; margin: 0 0 8px; } h2 { font-size: 15px; margin: 28px 0 8px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 0; }
dt { color: #667; } dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; } th { color: #667; font-weight: 400; text-align: left; }
td, th { padding: 3px 12px 3px 0; border-bottom: 1px solid #d8dce2; vertical-align: top; }
td.n { text-align: right; white-space: nowrap; } td.plan { overflow-wrap: anywhere; }
tr.chosen td { font-weight: 600; } tr.beaten td { color: #667; }
svg { display: block; max-width: 100%; height: auto; } footer { color: #667; margin: 28px 0; }
"""


def render(found: Tuned, played: Sequence[Played]) -> str:
    """The page. Raises MissingExtraError without matplotlib."""
    title = "smolvla-edge tune: " + ", ".join(found.request.bundles)
    parts = [
        f"<h1>{escape(title)}</h1>",
        _facts(found),
        "<h2>Time against error, measured</h2>",
        pictures.pareto(found),
        _table(found),
        *_closed_loop(found, played),
    ]
    if found.influence is not None:
        parts += ["<h2>Each layer left out alone</h2>", pictures.layers(found.influence)]
    parts += _cache(found)
    parts.append(
        "<footer><p>Errors are of the executed actions against the exact policy in float32, root "
        "mean square as a share of each action's range. They rank plans of one policy; an error "
        "of actions is no success rate. Times are of this machine and of the load that it had: "
        "every plan was called once in each turn. The work that steered the search is counted, "
        "not timed.</p></footer>"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _facts(found: Tuned) -> str:
    one = found.chosen
    verdict = "chosen" if found.choice.fits else "nothing fits; nearest"
    facts = [
        (verdict, f"{found.words(one)}: {one.speedup:.2f} times as fast as the exact plan of the "
                  f"first bundle, error {one.held_out.rms_of_range:.2%} on held-out frames, "
                  f"{found.error.rms_of_range:.2%} on those of the search"),
        ("budget", found.request.budget.describe()),
        ("frames", found.streams.describe()),
        ("executed", f"{found.rows} of {found.reference.model.chunk_size} actions of a chunk"),
        ("exact is", f"{found.reference.provenance['source']} in float32"),
        ("trials", f"{' + '.join(str(len(mine)) for mine in found.trials)}, seed "
                   f"{found.request.seed}"),
        ("timed with", f"{found.ran['isa']}, threads: {found.ran['threads']}; "
                       f"{one.latency.calls} calls of each plan in turn"),
        *found.space.describe(),
    ]  # fmt: skip
    lines = (f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    return f"<dl>{''.join(lines)}</dl>"


def _table(found: Tuned) -> str:
    front = set(measured_front(found.finalists))
    points = [(one.latency.median_ms, one.held_out.rms_of_range) for one in found.finalists]
    lines = []
    for row, (number, _) in enumerate(pictures.rows(found, points), start=1):
        one = found.finalists[number]
        chosen = number == found.choice.number
        kind = "chosen" if chosen else "" if number in front else "beaten"
        cells = [
            (row, "n"),
            *([(found.request.bundles[one.candidate.source], "plan")]
              if len(found.sources) > 1 else []),
            (found.words(one), "plan"),
            ("-" if one.candidate.error is None else f"{one.candidate.error:.2%}", "n"),
            (f"{one.held_out.rms_of_range:.2%}", "n"),
            (f"{one.latency.median_ms:.2f}", "n"),
            (f"{one.latency.p90_ms:.2f}", "n"),
            (f"{one.speedup:.2f}x", "n"),
        ]  # fmt: skip
        lines.append(f'<tr class="{kind}">' + "".join(
            f'<td class="{style}">{escape(str(text))}</td>' for text, style in cells
        ) + "</tr>")  # fmt: skip
    heads = ["", *(["bundle"] if len(found.sources) > 1 else []), "plan", "error, searched",
             "held out", "median ms", "p90 ms", "speed"]  # fmt: skip
    head = "".join(f"<th>{escape(word)}</th>" for word in heads)
    return (
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
        "<p>Bold: chosen. Grey: another one is both faster and closer.</p>"
    )


def _closed_loop(found: Tuned, played: Sequence[Played]) -> list[str]:
    if not played:
        return ["<h2>Closed loop</h2><p>Unmeasured.</p>"]
    lines = (
        f"<dt>{escape(found.words(found.finalists[one.number]))}</dt>"
        f"<dd>{escape(one.describe())}</dd>"
        for one in played
    )
    return ["<h2>Closed loop, in pairs with the exact plan</h2>", f"<dl>{''.join(lines)}</dl>"]


def _cache(found: Tuned) -> list[str]:
    """The token cache of the choice, or else of the fastest finalist that has one."""
    shown = _shown(found)
    if shown is None or not heat_map.has_blocks(found.reference.model):
        return []
    source, cache = found.sources[shown.candidate.source], shown.plan.cache
    stream = max(found.streams.search, key=len)
    seeing = source.contract.select_frames(stream.frames[0].images)
    parts = ["<h2>The token cache, on one stream</h2>", f"<p>{escape(found.words(shown))}</p>"]
    for camera, frame in seeing:
        watched = cache is not None and (cache.cameras is None or camera in cache.cameras)
        if frame is None or not watched:
            continue
        seen = heat_map.computed(source, shown.plan, stream.frames, camera)
        title = f"{camera}, episode {stream.episode}: {stream.frames[0].task}"
        parts.append(heat_map.draw(seen, title))
    return parts


def _shown(found: Tuned) -> Finalist | None:
    cached = [one for one in found.finalists if one.plan.cache is not None]
    if found.chosen in cached:
        return found.chosen
    return min(cached, key=lambda one: one.latency.median_ms, default=None)
