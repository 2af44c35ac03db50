"""One engine a file; each runs one family of models.

Importing this package sets two defaults for the native libraries its engines load later. OpenMP
threads wait asleep, not spinning: on a 2-core machine where another process computes, two spinning
threads generate 0.3 tokens/s and two sleeping ones 8. Tokenizers stay single-threaded, or they
warn whenever the process forks.
"""

from __future__ import annotations

import os
from typing import Final

__all__ = ["DEFAULT_THREADS"]

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

DEFAULT_THREADS: Final = max(1, min((os.cpu_count() or 1) // 2, 16))
"""Threads of one process: half the cores, because a node rarely has a machine for itself (with one
thread of two cores SmolLM2-135M writes 22 tokens/s whether or not the other core is busy)."""
