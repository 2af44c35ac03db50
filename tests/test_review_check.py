"""What an auditor makes of a bundle's review: its receipt, its draw, its account."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daifi_flows import verify
from daifi_flows._review_check import check_review
from daifi_flows._review_text import read_report, report_text
from daifi_flows.bundle import MAX_REPORT_CHARS, METADATA_FORMAT, Metadata, report_digest
from daifi_flows.cnft import (
    PPM,
    Attestation,
    Basis,
    BlockHeader,
    Committee,
    Content,
    CoreMetadata,
    Decision,
    Execution,
    Materials,
    ModelRef,
    Proof,
    QuorumCertificate,
    Receipt,
    Review,
    Seat,
    Subject,
    TaskSpec,
    TxReceipt,
    Usage,
    VoteChoice,
)
from daifi_flows.encoding import cid_of, keccak256
from daifi_flows.errors import BundleError, CommitteeError, EncodingError
from daifi_flows.judges import ChunkReport, ReviewReport, SeatReport
from daifi_flows.judges._report import Feature, FindingReport
from daifi_flows.keys import Account, BlsKey, aggregate_bls
from daifi_flows.merkle import merkle_root
from daifi_flows.proofs import Claim, make_proof
from daifi_flows.review_rate import drawn_for_review
from daifi_flows.threshold import combine_shares, deal

NODE, OTHER = Account.from_seed(b"node"), Account.from_seed(b"other node")
BUYER = Account.from_seed(b"buyer")
LEDGER = b"\x07" * 32
SEATS, QUORUM = 7, 5
HALF = PPM // 2


@cache
def keys(name: str = "seats") -> tuple[BlsKey, ...]:
    return tuple(BlsKey.from_seed(f"{name} {index}".encode().ljust(32)) for index in range(SEATS))


@cache
def dealing() -> Any:
    return deal(b"\x05" * 32, SEATS, QUORUM)


@cache
def committee(name: str = "seats") -> Committee:
    seats = tuple(
        Seat(
            index=index,
            public=key.public,
            possession=key.prove_possession(),
            account=Account.from_seed(f"{name} {index}".encode()).address,
            share=dealing().shares[index],
        )
        for index, key in enumerate(keys(name))
    )
    found = Committee(epoch=0, seats=seats, group_key=dealing().group_key)
    assert found.quorum == QUORUM
    return found


def group_signature(message: bytes) -> bytes:
    return combine_shares({n: dealing().secrets[n].sign(message) for n in range(QUORUM)})


def certified(leaf: TxReceipt, **changes: Any) -> Receipt:
    """The only receipt of a block that five seats certified."""
    fields: dict[str, Any] = {
        "ledger_id": LEDGER,
        "height": 9,
        "receipt_root": merkle_root([leaf.canonical()]),
        "timestamp_ms": 1,
        "proposer": BUYER.address,
        "builder": BUYER.address,
        "round": 0,
        "epoch": 0,
        "committee": committee().digest,
        "history_size": 1,
    }
    zeros = ("parent", "tx_root", "state_root", "beacon", "history_root")
    header = BlockHeader(**(dict.fromkeys(zeros, bytes(32)) | fields | changes))
    message = QuorumCertificate.message(header.digest)
    signature = aggregate_bls([key.sign(message) for key in keys()[:QUORUM]])
    certificate = QuorumCertificate(signers=(1 << QUORUM) - 1, signature=signature)
    return Receipt(header=header, certificate=certificate, leaf=leaf, index=0, size=1, path=())


@dataclass(frozen=True)
class Case:
    """A bundle's metadata and proof, as an honest client writes them."""

    metadata: Metadata
    proof: Proof
    report: ReviewReport

    def said(self, trusted: Committee | None = None) -> str:
        return check_review(self.metadata, self.proof, trusted or committee())

    def changed(self, **changes: Any) -> Case:
        return Case(self.metadata.model_copy(update=changes), self.proof, self.report)

    def in_core(self, **changes: Any) -> Case:
        return self.changed(core=self.metadata.core.model_copy(update=changes))

    def in_leaf(self, **changes: Any) -> Case:
        """With another commit, which the committee certified all the same."""
        assert self.metadata.committed is not None
        leaf = self.metadata.committed.leaf.model_copy(update=changes)
        return self.changed(committed=certified(leaf))

    def in_report(self, **changes: Any) -> Case:
        """With another account, to which the settlement commits all the same."""
        text = report_text(self.report.model_copy(update=changes))
        digest = report_digest(self.metadata.core.spec.task_id, text)
        return self.in_core(report=digest).changed(report_json=text)


def build(nonce: int, rate: int | None, operator: str | None, **review: Any) -> tuple[Case, bool]:
    """A bundle of this review rate (no receipt without one), and whether it was drawn."""
    workdir = Path()
    input, output = (Content.json_value(value, bytes(32)) for value in ({"n": 1}, {"n": 2}))
    spec = TaskSpec(
        kind="function",
        model=ModelRef(name="m", digest=bytes(32), engine="function", precision="none"),
        input_cid=input.cid,
        scheme="digest",
        review=Review(**review),
        max_price_wei=10**16,
        deadline_ms=77,
        buyer=BUYER.address,
        nonce=nonce.to_bytes(32, "big"),
    )
    proof = make_proof(Claim(spec, input, output), Execution(output, Usage()), NODE, workdir)
    committed = None
    if rate is not None:
        committed = certified(
            TxReceipt(
                tx=bytes(32),
                kind="commit",
                sender=BUYER.address,
                task_id=spec.task_id,
                node=NODE.address,
                content=proof.header.digest(),
                attempt=1,
                review_ppm=rate,
            )
        )
    subject = Subject(
        ledger_id=LEDGER,
        committee=committee().digest,
        epoch=0,
        task_id=spec.task_id,
        attempt=1,
        node=NODE.address,
        output_cid=output.cid,
        proof_cid=proof.cid,
        min_confidence_ppm=spec.review.min_confidence_ppm,
        deadline_ms=spec.deadline_ms,
        review_ppm=PPM if rate is None else rate,
        operator=operator,
    )
    beacon = group_signature(subject.beacon_message())
    drawn = drawn_for_review(keccak256(beacon), subject.review_ppm)
    basis, confidence = (Basis.REVIEWED, 998_000) if drawn else (Basis.WAIVED, 0)
    report = account(spec.task_id, proof.cid, basis, confidence, subject.review_ppm, beacon, drawn)
    text = report_text(report)
    core = CoreMetadata(
        name="step",
        spec=spec,
        node=NODE.address,
        usage=Usage(),
        timestamp_ms=1,
        output_cid=output.cid,
        output_encryption="none",
        output_file_cid=cid_of(b"output"),
        proof_cid=proof.cid,
        proof_file_cid=cid_of(b"proof"),
        manifest_cid=cid_of(b"manifest"),
        report=report_digest(spec.task_id, text),
        operator=operator,
    )
    attestation = Attestation(
        ledger_id=LEDGER,
        epoch=0,
        task_id=spec.task_id,
        attempt=1,
        node=NODE.address,
        output_cid=output.cid,
        proof_cid=proof.cid,
        decision=Decision.ACCEPTED,
        confidence_ppm=confidence,
        basis=basis,
        signers=(1 << QUORUM) - 1,
        signature=bytes(96),
    )
    signatures = [key.sign(attestation.message()) for key in keys()[:QUORUM]]
    attestation = attestation.model_copy(update={"signature": aggregate_bls(signatures)})
    metadata = Metadata(
        format=METADATA_FORMAT,
        core=core,
        attestation=attestation,
        receipt=certified(TxReceipt(tx=bytes(32), kind="settle", sender=BUYER.address)),
        committed=committed,
        report_json=text,
    )
    return Case(metadata, proof, report), drawn


def account(
    task_id: bytes,
    proof_cid: str,
    basis: Basis,
    confidence_ppm: int,
    rate: int,
    beacon: bytes,
    drawn: bool,
) -> ReviewReport:
    chunk = ChunkReport(
        chunk=0,
        decision=Decision.ACCEPTED,
        confidence_ppm=confidence_ppm,
        accepts=3,
        rejects=0,
        abstains=0,
        full=0,
        reason="re-execution gives\nthe same bytes",
        asked=(0, 1, 2),
        replaced=(),
        silent=(),
        findings=tuple(
            FindingReport(
                seat=seat,
                wave=0,
                decision=VoteChoice.ACCEPT,
                confidence_ppm=confidence_ppm,
                reason="re-execution gives\nthe same bytes",
            )
            for seat in range(3)
        ),
    )
    seats = tuple(
        SeatReport(
            seat=seat,
            asked=(0,) if drawn and seat < 3 else (),
            checked=(0,) if drawn and seat < 3 else (),
            signed=seat < QUORUM,
        )
        for seat in range(SEATS)
    )
    return ReviewReport(
        task_id=task_id,
        proof_cid=proof_cid,
        decision=Decision.ACCEPTED,
        basis=basis,
        confidence_ppm=confidence_ppm,
        reason=chunk.reason if drawn else "not drawn",
        review_ppm=rate,
        drawn=int(drawn),
        beacon=beacon,
        waves=int(drawn),
        missing=0,
        signers=QUORUM,
        quorum=QUORUM,
        conflicted=(),
        chunks=(chunk,) if drawn else (),
        seats=seats,
        open_ms=1,
        commit_ms=2,
        reveal_ms=3,
        sign_ms=4,
        total_ms=10,
    )


@cache
def case(wanted: bool, rate: int | None = HALF, operator: str | None = None) -> Case:
    """A bundle whose work was drawn for review, or was not."""
    for nonce in range(100):
        found, drawn = build(nonce, rate, operator)
        if drawn == wanted:
            return found
    raise AssertionError("no draw of a hundred")


# Honest bundles


@pytest.mark.parametrize("operator", [None, OTHER.address])
@pytest.mark.parametrize(("rate", "text"), [(None, "100 %"), (PPM, "100 %"), (HALF, "50 %")])
def test_a_review_is_told_with_its_rate_and_reason(
    rate: int | None, text: str, operator: str | None
) -> None:
    assert case(True, rate, operator).said() == (
        f"reviewed, at a rate of {text}; by the client's account 3 seats checked the output: "
        "re-execution gives the same bytes"
    )


def test_work_that_was_not_drawn_says_at_which_rate() -> None:
    said = case(False).said()
    assert said == "not drawn at a rate of 50 %, as the committee's beacon shows"


def test_without_an_account_a_review_is_believed_and_an_unseen_output_only_half() -> None:
    bare = {"report": None}
    assert "no account" in case(True).in_core(**bare).changed(report_json=None).said()
    with pytest.raises(CommitteeError, match=r"50 %, but the draw is not shown"):
        case(False).in_core(**bare).changed(report_json=None).said()


def test_without_a_committee_nothing_is_told() -> None:
    for drawn in (True, False):
        with pytest.raises(CommitteeError, match="--committee"):
            check_review(case(drawn).metadata, case(drawn).proof, None)


@pytest.mark.parametrize(
    ("drawn", "said"),
    [
        (True, "5 of 7 seats accepted (quorum 5), confidence 0.9980"),
        (False, "5 of 7 seats (quorum 5) let it pass: not drawn for review"),
    ],
)
def test_what_the_seats_signed_is_told_as_it_is(drawn: bool, said: str) -> None:
    """No confidence is asked of an output that nobody looked at."""
    bundle: Any = SimpleNamespace(metadata=case(drawn).metadata)
    auditor = verify._Auditor(bundle, committee(), None, Materials(), None, Path())
    check = verify._run("committee signature", auditor.committee_signature)
    assert (check.status, check.detail) == (verify.Status.PASSED, said)
    swapped = {"basis": Basis.REVIEWED if not drawn else Basis.WAIVED}
    bundle.metadata = bundle.metadata.model_copy(
        update={"attestation": bundle.metadata.attestation.model_copy(update=swapped)}
    )
    check = verify._run("committee signature", auditor.committee_signature)
    assert check.status is verify.Status.FAILED


# Lies

WAIVED: dict[str, Any] = {
    "without the commit's receipt": lambda c: c.changed(committed=None),
    "at a rate of one": lambda c: c.in_leaf(review_ppm=PPM),
    "at no rate": lambda c: c.in_leaf(review_ppm=None),
    "although the task asks for a review": lambda c: c.in_core(
        spec=c.metadata.core.spec.model_copy(update={"review": Review(always=1)})
    ),
    "told as a review": lambda c: c.in_report(basis=Basis.REVIEWED),
    "told as drawn": lambda c: c.in_report(drawn=1),
}
BOTH: dict[str, Any] = {
    "another kind of receipt": lambda c: c.in_leaf(kind="assign"),
    "another node's receipt": lambda c: c.in_leaf(node=OTHER.address),
    "another attempt's receipt": lambda c: c.in_leaf(attempt=2),
    "another proof's receipt": lambda c: c.in_leaf(content=bytes(32)),
    "another task's receipt": lambda c: c.in_leaf(task_id=bytes(32)),
    "another rate": lambda c: c.in_leaf(review_ppm=HALF + 1),
    "a receipt of another ledger": lambda c: c.changed(
        committed=certified(c.metadata.committed.leaf, ledger_id=bytes(32))
    ),
    "a receipt that is not in its block": lambda c: c.changed(
        committed=certified(c.metadata.committed.leaf, receipt_root=bytes(32))
    ),
    "a certificate of too few seats": lambda c: c.changed(
        committed=c.metadata.committed.model_copy(
            update={"certificate": QuorumCertificate(signers=15, signature=bytes(96))}
        )
    ),
    "an account that is missing": lambda c: c.changed(report_json=None),
    "an account that nobody settled": lambda c: c.in_core(report=None),
    "another account than was settled": lambda c: c.changed(report_json=c.metadata.report_json[1:]),
    "an account of another task": lambda c: c.in_report(task_id=bytes(32)),
    "an account of another proof": lambda c: c.in_report(proof_cid=cid_of(b"x")),
    "another decision": lambda c: c.in_report(decision=Decision.REJECTED),
    "another confidence": lambda c: c.in_report(confidence_ppm=999_999),
    "another told rate": lambda c: c.in_report(review_ppm=HALF - 1),
    "a beacon of something else": lambda c: c.in_report(beacon=group_signature(b"else")),
    "a beacon that is none": lambda c: c.in_report(beacon=bytes(96)),
    "an operator the seats did not know of": lambda c: c.in_core(operator=OTHER.address),
}


@pytest.mark.parametrize("lie", (WAIVED | BOTH).values(), ids=WAIVED | BOTH)
def test_an_output_that_was_not_looked_at_passes_with_nothing_wrong_only(lie: Any) -> None:
    with pytest.raises((BundleError, EncodingError)):
        lie(case(False)).said()


@pytest.mark.parametrize("lie", BOTH.values(), ids=BOTH)
def test_a_review_passes_with_nothing_wrong_only(lie: Any) -> None:
    with pytest.raises((BundleError, EncodingError)):
        lie(case(True)).said()


def test_another_committee_is_not_believed() -> None:
    for drawn in (True, False):
        with pytest.raises(EncodingError, match="committee"):
            case(drawn).said(committee("strangers"))


def test_a_draw_that_fell_for_a_review_cannot_be_told_as_waived() -> None:
    """The beacon is right and all is signed, but it says otherwise."""
    drawn = case(True)
    attestation = drawn.metadata.attestation.model_copy(
        update={"basis": Basis.WAIVED, "confidence_ppm": 0}
    )
    lie = drawn.in_report(basis=Basis.WAIVED, confidence_ppm=0, drawn=0)
    with pytest.raises(BundleError, match="drew the work otherwise"):
        lie.changed(attestation=attestation).said()


# The text


def test_an_account_keeps_every_word_where_there_is_room() -> None:
    for drawn in (True, False):
        report = case(drawn).report
        assert read_report(report_text(report)) == report


@pytest.mark.parametrize(("findings", "features"), [(21, 0), (21, 24), (63, 24)])
def test_a_long_account_is_told_in_less_detail(findings: int, features: int) -> None:
    report = case(True).report
    named = tuple(Feature(name=f"a feature, number {n}", value_ppm=PPM) for n in range(features))
    finding = report.chunks[0].findings[0]
    told = tuple(
        finding.model_copy(update={"seat": seat, "reason": '"' * 200, "features": named})
        for seat in range(findings)
    )
    chunks = tuple(
        report.chunks[0].model_copy(update={"chunk": n, "findings": told}) for n in range(64)
    )
    long = report.model_copy(update={"chunks": chunks})
    text = report_text(long)
    assert len(text) <= MAX_REPORT_CHARS
    again = read_report(text)
    assert [chunk.reason for chunk in again.chunks] == [chunk.reason for chunk in chunks]
    assert again.seats == report.seats


@given(st.data())
def test_any_text_gives_an_account_or_a_typed_error(data: st.DataObject) -> None:
    honest = report_text(case(True).report)
    at = data.draw(st.integers(0, len(honest) - 1))
    other = data.draw(st.text(max_size=4))
    for text in (honest[:at] + other + honest[at + 1 :], honest[:at], other):
        try:
            found = read_report(text)
        except EncodingError:
            continue
        assert report_text(found) == text
