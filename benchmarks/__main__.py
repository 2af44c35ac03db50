"""``python -m benchmarks NAME [--json]``."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

from benchmarks._report import report

NAMES = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


def main() -> None:
    """Run one benchmark and print its figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args()
    figures = importlib.import_module(f"benchmarks.{arguments.name}").figures()
    if arguments.json:
        print(json.dumps(report(arguments.name, figures), indent=2))
        return
    for figure in figures:
        verdict = {None: "", True: "met", False: "MISSED"}[figure.met]
        print(
            f"{figure.name:<50} {figure.value:9.3f} {figure.unit:<3} {figure.target:<10} {verdict}"
        )


if __name__ == "__main__":
    main()
