"""Turn the JSON of any benchmark into Markdown, through the one template.

A result is {"format", "kind", "title", "about", "conditions", "settings", "engines", "noise",
"quiet", ...}; what its tables are is its kind's business, in `sections_of`. `noise` is None where
no time was taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

FORMAT = 2
_TEMPLATE = Path(__file__).with_name("TEMPLATE.md")


@dataclass(frozen=True)
class Section:
    """A heading, a table, and the sentences that say what its columns are."""

    heading: str
    table: str
    about: str = ""


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; a vertical bar inside a cell is escaped."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in [header, *rows]]
    lines = ["| " + " | ".join(escaped[0]) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in escaped[1:]]
    return "\n".join(lines)


def milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.3f}"


def share(part: float | None, whole: float | None) -> str:
    return f"{part / whole:.0%}" if part and whole else "-"


def number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def ceiling_sentence(ceilings: dict[str, float | None]) -> str:
    """The measured loops of a run, in words."""
    found = [f"{kind} {rate:.0f} GFLOP/s" for kind, rate in ceilings.items() if rate]
    return ", ".join(found) if found else "not measured"


def _conditions(run: dict[str, Any]) -> str:
    where = run["conditions"]
    cpu = where["cpu"]
    machine = ", virtual machine" if cpu["hypervisor"] else ""
    changes = " with uncommitted changes" if where["uncommitted_changes"] else ""
    rows = [
        [
            "CPU",
            f"{cpu['model']} ({cpu['vendor']}, family {cpu['family']}, "
            f"model {cpu['model_number']}){machine}",
        ],
        ["features", " ".join(cpu["features"])],
        ["cores, affinity", f"{where['cores']}, {where['affinity']}"],
        ["governor", where["governor"]],
        ["cgroup CPU quota", where["cgroup_cpu_quota"]],
        ["memory", f"{where['memory_mib']:.0f} MiB"],
        ["load average before", " ".join(f"{x:.2f}" for x in where["load_average_before"])],
        ["system", f"{where['system']}, kernel {where['kernel']}, Python {where['python']}"],
        ["commit", where["commit"] + changes],
        ["date", where["date"]],
    ]
    rows += [[name, str(value)] for name, value in run["settings"].items()]
    for name, engine in run["engines"].items():
        versions = ", ".join(f"{k} {v}" for k, v in engine["versions"].items())
        isa = engine.get("info", {}).get("isa")
        rows.append([name, versions + (f"; isa {isa}" if isa else "")])
    return table(["what", "value"], rows)


def verdict(run: dict[str, Any]) -> str:
    """Whether the times of a run may be quoted; nothing for a result without times."""
    if run["noise"] is None:
        return ""
    if any(result.get("disturbed_used") for result in run.get("results", [])):
        return "**Other processes disturbed too much: times and ratios are not to be quoted.**"
    if run["quiet"]:
        return "The machine was quiet."
    return "**The machine was not quiet: read the notes at the end.**"


def sections_of(run: dict[str, Any]) -> list[Section]:
    """The tables of a result, by its kind. Raises ValueError for an unknown kind or format."""
    if run.get("format") != FORMAT:
        raise ValueError(f"expected a result of format {FORMAT}, got {run.get('format')!r}")
    from benchmarks import (
        end_to_end_tables,
        export_tables,
        libraries_tables,
        precision_tables,
        reuse_tables,
        stream_tables,
    )
    from benchmarks.gpu import micro_tables

    kinds: dict[str, Callable[[dict[str, Any]], list[Section]]] = {
        "end_to_end": end_to_end_tables.sections,
        "export": export_tables.sections,
        "gpu_micro": micro_tables.sections,
        "libraries": libraries_tables.sections,
        "precision": precision_tables.sections,
        "reuse": reuse_tables.sections,
        "stream": stream_tables.sections,
    }
    if run.get("kind") not in kinds:
        raise ValueError(f"kind: expected one of {', '.join(kinds)}, got {run.get('kind')!r}")
    return kinds[run["kind"]](run)


def render(run: dict[str, Any]) -> str:
    """The Markdown of one result."""
    parts = []
    for section in sections_of(run):
        heading = [f"## {section.heading}"] if section.heading else []
        parts += [*heading, section.table, *([section.about] if section.about else [])]
    notes = run["noise"]
    quiet = "There are no times in this report." if notes is None else "Nothing else used the CPUs."
    listed = "\n".join(f"- {note}" for note in notes or [])
    return Template(_TEMPLATE.read_text()).substitute(
        title=run["title"],
        about=" ".join(filter(None, [run["about"], verdict(run)])),
        sections="\n\n".join(parts),
        conditions=_conditions(run),
        noise=f"Not quiet:\n\n{listed}" if notes else quiet,
        command=run["conditions"]["command"],
    )
