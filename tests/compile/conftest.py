from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from compile_sources import sources, targets_of
from compile_tools import Record, Tools, compile_source, find_tools

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tools() -> Tools:
    if not (ROOT / "csrc" / "cuda").is_dir():
        pytest.skip("the sources are not beside these tests")
    found = find_tools()
    if isinstance(found, str):
        if os.environ.get("SMOLVLA_REQUIRE_NVCC") == "1":
            pytest.fail(f"SMOLVLA_REQUIRE_NVCC=1, and {found}")
        pytest.skip(found)
    return found


@pytest.fixture(scope="session")
def kept(pytestconfig: pytest.Config) -> Path:
    """Where results of unchanged sources are kept from run to run."""
    return Path(pytestconfig.cache.mkdir("compile_gates"))


@pytest.fixture(scope="session")
def compiled(tools: Tools, kept: Path) -> dict[Path, Future[list[Record]]]:
    """What every source became for its targets, or its CompileError. One at a time on each
    processor: all of them together cost about 110 seconds of one."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return {
            source: pool.submit(
                compile_source, tools, source, ROOT / "csrc", kept, targets_of(source)
            )
            for source in sources()
        }
