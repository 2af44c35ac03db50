"""One model is loaded at a time in a process.

transformers builds models under process-wide switches (the meta device, the default dtype): two
threads that load two models at once give one of them weights without data.
"""

from __future__ import annotations

import threading
from typing import Final

__all__ = ["LOADING"]

LOADING: Final = threading.RLock()
"""Held while weights are read into memory."""
