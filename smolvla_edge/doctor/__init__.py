"""What stands between this machine and a running policy: `smolvla-edge doctor`.

One file a check. A `read_*` function collects facts (through a Tree, so that tests can make a
machine up), a `check_*` function turns facts into a Finding and touches nothing else.
"""

from smolvla_edge.doctor.finding import Finding, counts
from smolvla_edge.doctor.report import examine

__all__ = ["Finding", "counts", "examine"]
