"""Makes ledger_kit importable (tests are collected with importmode=importlib)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
