"""Bytes that once did harm, here or in other implementations, replayed against their target.

``corpus/TARGET/NAME.bin`` holds the bytes; corpus/README.md says what each did. Add what a long
run finds (``make fuzz`` leaves it under ``runs/fuzz``).
"""

from typing import Any

import pytest
from hostile import CORPUS

FILES = sorted(CORPUS.glob("*/*.bin"))


def test_there_is_a_corpus() -> None:
    assert FILES
    listed = (CORPUS / "README.md").read_text()
    for file in FILES:
        assert file.name in listed, f"corpus/README.md does not say what {file.name} did"


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_it_is_refused(target: Any, file: Any) -> None:
    target(file.parent.name).attack(file.read_bytes())
