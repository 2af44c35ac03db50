"""A scheme from another package: found by its entry point, and held to what every scheme is."""

import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daifi_flows.cnft import Content, Execution, Materials, Usage
from daifi_flows.encoding import canonical
from daifi_flows.errors import ProofError
from daifi_flows.proofs import Outcome, get_scheme, scheme_names

PACKAGE = Path(__file__).with_name("third_party")
NUMBER = 600_851_475_143
FACTORS = [71, 839, 1471, 6857]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What ``pip install ./third_party`` leaves: the module, and metadata with the entry points."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    (tmp_path / "factor_proofs.py").write_text((PACKAGE / "factor_proofs.py").read_text())
    info = tmp_path / f"factor_proofs-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    (info / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
            for group, points in project["entry-points"].items()
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    get_scheme.cache_clear()
    yield
    get_scheme.cache_clear()
    sys.modules.pop("factor_proofs", None)


@pytest.fixture
def case(installed: None, kit: Any, tmp_path: Path) -> Any:
    input = Content.json_value({"n": NUMBER}, kit.SALT)
    output = Content.json_value(FACTORS, kit.SALT)
    execution = Execution(output, Usage(), {"factors": FACTORS})
    spec = kit.build_spec(input, "factors")
    return kit.Case(spec, input, execution, Materials(), None, tmp_path)


def test_it_is_found_by_its_entry_point(installed: None) -> None:
    assert "factors" in scheme_names()
    assert get_scheme("factors").name == "factors"


def test_an_honest_node_is_valid_without_any_model(case: Any) -> None:
    verdict = case.verify(case.prove())
    assert (verdict.outcome, verdict.confidence_ppm) == (Outcome.VALID, 1_000_000)


@pytest.mark.parametrize(
    "factors",
    [[71, 839, 1471, 6859], [71 * 839, 1471, 6857], FACTORS[:-1], [*FACTORS, 1], [NUMBER], []],
    ids=str,
)
def test_a_cheat_is_invalid_and_cannot_be_proven(case: Any, factors: list[int], kit: Any) -> None:
    output = Content.json_value(factors, kit.SALT)
    forged = case.forge(case.prove(), canonical(factors), output_cid=output.cid)
    assert case.verify(forged, output=output).outcome is Outcome.INVALID
    dishonest = Execution(output, Usage(), {"factors": factors})
    with pytest.raises(ProofError):
        replace(case, execution=dishonest).prove()


def test_an_engine_without_the_evidence_is_told_what_it_lacks(case: Any) -> None:
    with pytest.raises(ProofError, match="factors needs factors of the engine"):
        replace(case, execution=replace(case.execution, evidence={})).prove()


def test_a_private_output_cannot_be_told(case: Any) -> None:
    assert case.verify(case.prove(), output=None).outcome is Outcome.CANNOT_TELL


def test_hostile_bytes_are_invalid(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same catalogue that the schemes of this package face."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "fuzz"))
    from hostile import catalogue, settle

    proof = case.prove()
    for _, data in catalogue(proof.payload):
        if data != proof.payload:
            settle(case.verify(case.forge(proof, data)), Outcome.INVALID)
