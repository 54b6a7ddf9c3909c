"""Write a result: JSON and, through the template, Markdown.

python -m benchmarks.store benchmarks/results/DEVICE.json     renders the Markdown again
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import log
from benchmarks.report import render

RESULTS = Path(__file__).resolve().parent / "results"


def save(result: dict[str, Any], name: str | None, copy: Path | None = None) -> None:
    """Prints the Markdown; with a name, keeps both forms in results/; `copy`: JSON there too."""
    text = json.dumps(result, indent=1) + "\n"
    markdown = render(result)
    targets = [(copy, text)] if copy else []
    if name is not None:
        RESULTS.mkdir(exist_ok=True)
        targets += [(RESULTS / f"{name}.json", text), (RESULTS / f"{name}.md", markdown)]
    for path, content in targets:
        path.write_text(content)
        log(f"wrote {path}")
    print(markdown)


def main() -> int:
    if len(sys.argv) < 2:
        log("usage: python -m benchmarks.store RESULT.json ...")
        return 2
    for argument in sys.argv[1:]:
        path = Path(argument)
        path.with_suffix(".md").write_text(render(json.loads(path.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
