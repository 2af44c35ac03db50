"""What the processes of this package have in common."""

from __future__ import annotations

import gc

__all__ = ["collect_rarely"]


def collect_rarely() -> None:
    """Have Python look for cyclic garbage seldom: call once, when a process is set up.

    Nouns make no cycles, and looking at all of those alive again and again took a fifth of the
    ledger's time. What is alive now is not looked at any more.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
