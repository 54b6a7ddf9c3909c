"""Turn the JSON of an end-to-end run into Markdown, through the one template."""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import Any

_TEMPLATE = Path(__file__).with_name("TEMPLATE.md")
STAGES = ("preprocess", "vision", "prefix", "flow")


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _summary(run: dict[str, Any]) -> str:
    rows = []
    for result in run["results"]:
        ratio = result.get("ratio")
        gap = result.get("action_difference")
        engine = run["engines"][result["engine"]]
        rows.append(
            [
                str(result["cameras"]),
                f"{result['engine']} ({engine['precision']})",
                _ms(result["median_ms"]),
                _ms(result["p10_ms"]),
                _ms(result["p90_ms"]),
                f"{result['samples_used']} of {result['samples']}",
                f"{engine['peak_rss_load_mib']:.0f} / {result['peak_rss_mib']:.0f}",
                f"{ratio:.2f}x" if ratio else "-",
                f"{gap['max_abs']:.1e} of {gap['largest_action']:.2f}" if gap else "-",
            ]
        )
    header = ["cameras", "engine", "median ms", "p10", "p90", "samples used", "peak RSS MiB"]
    return table([*header, "ratio", "action difference"], rows)


def _stages(run: dict[str, Any], ours: bool) -> str:
    ceiling = run["ceiling_gflops"]
    rows = []
    for result in run["results"]:
        if (result["engine"] == "smolvla-edge") != ours:
            continue
        for stage in (*STAGES, "total"):
            ms = result["median_ms"] if stage == "total" else result["stages_ms"].get(stage)
            if ms is None:
                continue
            work = result["gflop"].get(stage)
            rate = work / ms * 1e3 if work else None
            row = [str(result["cameras"]), stage, _ms(ms), f"{ms / result['median_ms']:.0%}"]
            row += [f"{work:.1f}" if work else "-", f"{rate:.0f}" if rate else "-"]
            row.append(f"{rate / ceiling:.0%}" if rate and ceiling else "-")
            rows.append(row)
    if not rows:
        return "Not run."
    header = ["cameras", "stage", "median ms", "share of time", "GFLOP", "GFLOP/s"]
    return table([*header, "share of ceiling"], rows)


def _conditions(run: dict[str, Any]) -> str:
    where = run["conditions"]
    cpu = where["cpu"]
    commit = where["commit"] + (" with uncommitted changes" if where["uncommitted_changes"] else "")
    rows = [
        [
            "CPU",
            f"{cpu['model']} ({cpu['vendor']}, family {cpu['family']}, "
            f"model {cpu['model_number']}){', virtual machine' if cpu['hypervisor'] else ''}",
        ],
        ["features", " ".join(cpu["features"])],
        ["cores, affinity", f"{where['cores']}, {where['affinity']}"],
        ["governor", where["governor"]],
        ["cgroup CPU quota", where["cgroup_cpu_quota"]],
        ["memory", f"{where['memory_mib']:.0f} MiB"],
        ["load average before", " ".join(f"{x:.2f}" for x in where["load_average_before"])],
        ["system", f"{where['system']}, kernel {where['kernel']}, Python {where['python']}"],
        ["commit", commit],
        ["date", where["date"]],
        ["checkpoint", run["checkpoint"]["about"]],
        ["input", run["settings"]["about"]],
        ["threads", str(run["settings"]["threads"])],
    ]
    for name, engine in run["engines"].items():
        versions = ", ".join(f"{k} {v}" for k, v in engine["versions"].items())
        extra = ", ".join(f"{k} {v}" for k, v in engine.get("info", {}).items() if k == "isa")
        rows.append([name, versions + (f"; {extra}" if extra else "")])
        rows.append(
            [
                f"{name}: load",
                f"{engine['load_seconds']:.1f} s, RSS after load "
                f"{engine['rss_after_load_mib']:.0f} MiB",
            ]
        )
    return table(["what", "value"], rows)


def render(run: dict[str, Any]) -> str:
    """The Markdown of one run."""
    notes = run["noise"]
    ceiling = run["ceiling_gflops"]
    if any(result["disturbed_used"] for result in run["results"]):
        verdict = (
            "**Other processes disturbed too many samples: times and ratios are not to be quoted.**"
        )
    elif run["quiet"]:
        verdict = "The machine was quiet."
    else:
        verdict = "**The machine was not quiet: read the notes at the end.**"
    listed = "\n".join(f"- {note}" for note in notes)
    return Template(_TEMPLATE.read_text()).substitute(
        cpu_model=f"{run['conditions']['cpu']['model']}, {run['settings']['threads']} threads",
        machine_verdict=verdict,
        summary_table=_summary(run),
        stage_table=_stages(run, ours=True),
        rival_table=_stages(run, ours=False),
        ceiling=f"{ceiling:.0f} GFLOP/s" if ceiling else "not measured",
        conditions_table=_conditions(run),
        noise_notes=f"Not quiet:\n\n{listed}" if notes else "Nothing else used the CPUs.",
        command=run["conditions"]["command"],
    )
