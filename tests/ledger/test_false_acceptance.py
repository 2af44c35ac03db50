"""A seat that accepts unseen: convicted by what a sure quorum rejected, and by nothing else."""

from __future__ import annotations

from typing import Any

import ledger_kinds as t
import pytest
from ledger_kit import (
    DAI,
    NODE,
    OTHER,
    SEAT_ACCOUNTS,
    STRANGER,
    attest,
    bound,
    make_spec,
    make_vote,
    opened,
    subject_of,
)
from market_bench import Market

from daifi_flows.cnft import Basis, Decision, Subject, TaskSpec, VoteChoice
from daifi_flows.encoding import cid_of
from daifi_flows.ledger import TaskState

SEAT = 3
STAKE = 50 * DAI


@pytest.fixture
def bench() -> Market:
    """Seat 3 has staked, and its committee has a wrong output before it."""
    made = Market()
    made.do(t.Transfer, OTHER, to=SEAT_ACCOUNTS[SEAT].address, amount_wei=STAKE)
    made.do(t.Stake, SEAT_ACCOUNTS[SEAT], amount_wei=STAKE)
    return made


def committed(bench: Market) -> TaskSpec:
    return bench.reach(TaskState.COMMITTED, make_spec())


def evidence(bench: Market, spec: TaskSpec, **changes: Any) -> t.Transaction:
    """What a stranger reports about seat 3's accept of chunk 0."""
    ledger = bench.machine.ledger_id
    subject: Subject = changes.pop("subject", None) or subject_of(
        spec, chunks=changes.pop("chunks", 1), ledger_id=ledger
    )
    vote = make_vote(subject, SEAT, changes.pop("choice", VoteChoice.ACCEPT))
    finding = changes.pop("finding", {})
    values = {
        "subject": subject,
        "acceptance": bound(vote),
        "opening": opened(vote),
        "attestation": attest(
            spec,
            **({"decision": Decision.REJECTED, "ledger_id": ledger, "confidence_ppm": 999_500}
               | finding),
        ),
    }  # fmt: skip
    return bench.make(t.FalseAcceptance, STRANGER, **(values | changes))


def test_a_seat_that_accepted_what_was_surely_wrong_loses_a_hundredth(bench: Market) -> None:
    spec = committed(bench)
    receipt = bench.run(evidence(bench, spec))
    assert bench.stake_of(SEAT_ACCOUNTS[SEAT]) == STAKE * 99 // 100
    assert receipt.node == SEAT_ACCOUNTS[SEAT].address
    assert bench.balance(STRANGER) == STAKE // 1_000  # the reporter's tenth
    assert bench.refused(evidence(bench, spec)) == "duplicate"


def test_it_counts_before_and_after_the_node_itself_was_slashed(bench: Market) -> None:
    spec = committed(bench)
    rejection = attest(
        spec, Decision.REJECTED, ledger_id=bench.machine.ledger_id, confidence_ppm=999_500
    )
    bench.do(t.Reject, OTHER, attestation=rejection)
    bench.run(evidence(bench, spec))
    assert bench.stake_of(SEAT_ACCOUNTS[SEAT]) < STAKE and bench.stake_of(NODE) < 100 * DAI


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"choice": VoteChoice.ABSTAIN}, "bad-field"),
        ({"choice": VoteChoice.REJECT}, "bad-field"),
        ({"chunks": 2}, "bad-field"),
        ({"finding": {"confidence_ppm": 998_999}}, "bad-field"),
        ({"finding": {"decision": Decision.ACCEPTED}}, "bad-field"),
        ({"finding": {"decision": Decision.UNPROVEN, "confidence_ppm": 0}}, "bad-field"),
        ({"finding": {"basis": Basis.WAIVED}}, "bad-field"),
        ({"finding": {"output_cid": cid_of(b"another output")}}, "bad-field"),
        ({"finding": {"attempt": 1}}, "bad-field"),
        ({"finding": {"signers": range(13)}}, "bad-signature"),
    ],
)
def test_what_convicts_nobody(bench: Market, changes: dict[str, Any], code: str) -> None:
    assert bench.refused(evidence(bench, committed(bench), **changes)) == code


def test_a_vote_that_the_seat_did_not_sign_convicts_nobody(bench: Market) -> None:
    spec = committed(bench)
    subject = subject_of(spec, chunks=1, ledger_id=bench.machine.ledger_id)
    vote = make_vote(subject, SEAT)
    forged = bound(vote).model_copy(update={"signature": bound(make_vote(subject, 4)).signature})
    assert bench.refused(evidence(bench, spec, acceptance=forged)) == "bad-signature"
    other = opened(make_vote(subject, SEAT, VoteChoice.ACCEPT, reason="another"))
    assert bench.refused(evidence(bench, spec, opening=other)) == "bad-field"
    theirs = opened(make_vote(subject, 4))
    copied = bound(make_vote(subject, 4), seat=SEAT)
    assert bench.refused(evidence(bench, spec, acceptance=copied, opening=theirs)) == "bad-field"


def test_an_attempt_that_was_not_the_nodes_convicts_nobody(bench: Market) -> None:
    spec = committed(bench)
    subject = subject_of(spec, chunks=1, ledger_id=bench.machine.ledger_id, attempt=1)
    finding = {"attempt": 1}
    assert bench.refused(evidence(bench, spec, subject=subject, finding=finding)) == "bad-state"
