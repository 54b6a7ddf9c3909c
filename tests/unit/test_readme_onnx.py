"""README's lines for machines that have ONNX Runtime and nothing of ours."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from needs import needs

from smolvla_edge.synthetic import make_checkpoint

with needs("torch", "onnx", "onnxscript", "onnxruntime"):
    from smolvla_edge.export.exporter import export_onnx
    from smolvla_edge.source import open_source

README = Path(__file__).parents[2] / "README.md"

# Import what else is installed, and it ends.
BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "smolvla_edge", "onnx", "onnxscript", "onnx_ir"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
"""


@pytest.mark.skipif(not README.is_file(), reason="README.md is not beside the tests")
def test_snippet(tmp_path):
    snippet = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[1]
    assert len(snippet.splitlines()) <= 25
    sizes = {"chunk_size": 50, "n_action_steps": 50, "max_action_dim": 32, "max_state_dim": 32}
    make_checkpoint(
        tmp_path / "policy", "tiny", cameras=["observation.images.top"], overrides=sizes
    )
    export_onnx(open_source(tmp_path / "policy"), tmp_path / "my_bundle" / "onnx")
    end = "\nprint(actions.shape, actions.dtype, bool(np.isfinite(actions).all()))\n"
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + snippet + end],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(50, 6) float32 True\n"
