"""An output in several parts: who checks which, what is asked again, and what is told of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from daifi_flows.cnft import Content, Decision, VoteChoice
from daifi_flows.judges import ReviewReport, subject_of
from daifi_flows.judges._client import ReviewClient
from daifi_flows.judges._report import features_of
from daifi_flows.judges.panel import FEATURES, UNKNOWN
from daifi_flows.proofs import Outcome, Span, Verdict
from daifi_flows.proofs.digest import DigestScheme

from review_kit import check  # isort: skip

PARTS = 5


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The ``digest`` scheme, checking a list item by item; the file tells which were checked."""
    log = tmp_path / "checked"

    def spans(self: DigestScheme, statement: Any) -> tuple[Span, ...]:
        return tuple(Span(i, PARTS, i, i + 1) for i in range(PARTS))

    def verify(
        self: DigestScheme, claim: Any, proof: Any, reference: Any, workdir: Path, span: Span
    ) -> Verdict:
        with log.open("a") as file:
            file.write(f"{span.index}\n")
        said = claim.output.value()[span.index]
        mine = reference.reexecute(claim.spec, claim.input, claim.materials).value()
        if said != mine:
            return Verdict(Outcome.INVALID, 0, f"item {span.index} is {said}, not {mine}")
        part = Content.json_value(said, bytes(32))
        return Verdict(Outcome.VALID, 999_000 + span.index, "as re-executed", part, part)

    monkeypatch.setattr(DigestScheme, "spans", spans)
    monkeypatch.setattr(DigestScheme, "verify", verify)
    return log


async def test_only_the_rejected_part_goes_before_all(
    hosts_of: Any, request_of: Any, seats: Any, in_parts: Path
) -> None:
    request = request_of([42, 42, 41, 42, 42])
    assert subject_of(request).chunks == PARTS
    hosts = hosts_of(21)
    attestation, report = await ReviewClient(hosts, seats.committee).review(request)
    check(attestation, seats.committee, Decision.REJECTED)
    assert [chunk.full for chunk in report.chunks] == [0, 0, 1, 0, 0]
    assert [len(chunk.findings) for chunk in report.chunks] == [7, 7, 21, 7, 7]
    assert (report.chunks[2].rejects, report.reason) == (21, "item 2 is 41, not 42")
    looked = [int(line) for line in in_parts.read_text().split()]
    assert [looked.count(part) for part in range(PARTS)] == [7, 7, 21, 7, 7]
    for chunk in report.chunks:
        assert {finding.seat for finding in chunk.findings} == {
            seat.seat for seat in report.seats if chunk.chunk in seat.checked
        }
        assert not chunk.silent and not chunk.replaced


async def test_the_confidence_is_that_of_the_least_sure_part(
    hosts_of: Any, request_of: Any, seats: Any, in_parts: Path
) -> None:
    request = request_of([42] * PARTS)
    attestation, report = await ReviewClient(hosts_of(1), seats.committee).review(request)
    check(attestation, seats.committee, Decision.ACCEPTED)
    assert attestation.confidence_ppm == 999_000 == report.confidence_ppm
    assert [chunk.confidence_ppm for chunk in report.chunks] == [999_000 + i for i in range(PARTS)]
    assert len(in_parts.read_text().split()) == PARTS  # one host looks once at each
    exact = {f.name: f.value_ppm for f in report.chunks[0].findings[0].features}["exact"]
    assert exact == 1_000_000


@pytest.mark.parametrize("traitor", ["reject-falsely", "silent", "equivocate"])
async def test_a_false_accuser_costs_work_and_is_named(
    hosts_of: Any, request_of: Any, seats: Any, in_parts: Path, traitor: str
) -> None:
    traitors = dict.fromkeys(range(0, 12, 2), traitor)
    client = ReviewClient(hosts_of(3, byzantine=traitors), seats.committee, grace_s=0.3)
    attestation, report = await client.review(request_of([42] * PARTS))
    check(attestation, seats.committee, Decision.ACCEPTED)
    for chunk in report.chunks:
        accused = {f.seat for f in chunk.findings if f.decision is VoteChoice.REJECT}
        assert accused <= traitors.keys() and bool(chunk.full) >= bool(accused)
        assert chunk.accepts >= (14 if chunk.full else 7)
        if traitor != "reject-falsely":
            assert not chunk.full and set(chunk.replaced) == set(chunk.silent) <= traitors.keys()


# The report


async def test_a_report_is_readable_by_machines_and_people(
    hosts_of: Any, request_of: Any, seats: Any, in_parts: Path
) -> None:
    hosts = hosts_of(3, byzantine={0: "reject-falsely", 1: "equivocate"})
    client = ReviewClient(hosts, seats.committee, grace_s=0.3)
    _, report = await client.review(request_of([42, 42, 41, 42, 42]))
    text = json.dumps(report.jsonable())
    assert len(text) < 200_000
    assert ReviewReport.from_plain(json.loads(text)) == report
    page = report.markdown()
    assert page.startswith("**rejected** (reviewed), confidence 100.00%: item 2 is 41, not 42")
    assert "review rate 100.00%, drawn by beacon" in page
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) == PARTS + 2 and "rejected by all seats" in rows[4]
    assert len(page) < 60_000


async def test_what_a_seat_writes_is_shown_as_text(
    hosts_of: Any, request_of: Any, seats: Any, doubling: Any
) -> None:
    def hostile() -> Any:
        raise OSError("<script>x</script>\n# heading\n| a | [click](http://x) ![i](y) `code`\u202e")

    client = ReviewClient(hosts_of(1, reference=hostile), seats.committee)
    _, report = await client.review(request_of())
    page = report.markdown()
    assert report.decision is Decision.UNPROVEN
    assert "\n# heading" not in page and "<script>" not in page.replace("\\<", "")
    assert "](http" not in page.replace("\\]", "").replace("\\(", "") and "\u202e" not in page


@pytest.mark.parametrize(
    "panel", [(), (1,), (PARTS,) * 24, (2**62,) * len(FEATURES), (UNKNOWN + 1,) * len(FEATURES)]
)
def test_numbers_that_no_panel_gives_are_not_shown(panel: tuple[int, ...]) -> None:
    assert features_of(panel) == ()


def test_features_have_their_names() -> None:
    numbers = (UNKNOWN, *range(1, len(FEATURES)))
    features = features_of(numbers)
    assert [feature.name for feature in features] == list(FEATURES)
    assert features[0].value_ppm is None and features[5].value_ppm == 5


@pytest.mark.parametrize("wrong", [False, True])
async def test_traffic_hardly_grows_with_the_parts(
    hosts_of: Any, request_of: Any, seats: Any, in_parts: Path, wrong: bool
) -> None:
    output = [42, 42, 41 if wrong else 42, 42, 42]
    hosts = hosts_of(21)
    await ReviewClient(hosts, seats.committee).review(request_of(output))
    per_seat = [sum((host.sent + host.received).values()) for host in hosts]
    assert max(per_seat) <= 10_000
