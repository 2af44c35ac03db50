"""Evidence of equivocation: what convicts a seat or a node, once, and what convicts nobody."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ledger_kinds as t
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_bench import META
from ledger_kit import (
    BUYER,
    COMMITTEE,
    DAI,
    GENESIS,
    NODE,
    OTHER,
    PROOF_CID,
    SEAT_ACCOUNTS,
    SEAT_KEYS,
    STRANGER,
    attest,
    make_header,
    make_spec,
)
from market_bench import STAKE, Market, other_header

from daifi_flows.cnft import BlockHeader, Decision, QuorumCertificate
from daifi_flows.encoding import cid_of, keccak256
from daifi_flows.keys import Account, aggregate_bls
from daifi_flows.ledger import TaskState

DAY = 86_400_000


def header(bench: Market, **changes: object) -> BlockHeader:
    """A block of the bench's ledger."""
    values: dict[str, object] = {
        "ledger_id": bench.machine.ledger_id,
        "height": 7,
        "parent": META,
        "tx_root": META,
        "receipt_root": META,
        "state_root": META,
        "timestamp_ms": bench.now,
        "proposer": BUYER.address,
        "builder": BUYER.address,
        "beacon": META,
        "epoch": 1,
        "committee": bench.machine.genesis.committee.digest,
        "history_root": META,
        "history_size": 0,
        "round": 2,
    }
    return BlockHeader.model_validate(values | changes)


def votes(block: BlockHeader, seats: Sequence[int]) -> QuorumCertificate:
    """What these seats signed, aggregated."""
    message = QuorumCertificate.message(block.digest)
    return QuorumCertificate(
        signers=sum(1 << i for i in seats),
        signature=aggregate_bls([SEAT_KEYS[i].sign(message) for i in seats]),
    )


def blocks_tx(
    bench: Market,
    first: BlockHeader | None = None,
    second: BlockHeader | None = None,
    seats: Sequence[int] = (3,),
    others: Sequence[int] | None = None,
    who: Account = STRANGER,
    **fields: object,
) -> t.Transaction:
    first = first if first is not None else header(bench)
    second = second if second is not None else header(bench, state_root=bytes(32))
    values = {
        "first": first,
        "first_votes": votes(first, seats),
        "second": second,
        "second_votes": votes(second, others if others is not None else seats),
    }
    return bench.make(t.BlockEquivocation, who, **(values | fields))


def findings_tx(
    bench: Market, spec, seats: Sequence[int] = (3,), who: Account = STRANGER, **second: object
) -> t.Transaction:
    """A seat that accepted and rejected one proof; ``second`` changes the second finding."""
    changes = {"decision": Decision.REJECTED} | second
    ours = attest(spec, ledger_id=bench.machine.ledger_id, signers=seats)
    theirs = attest(spec, **({"ledger_id": bench.machine.ledger_id, "signers": seats} | changes))
    return bench.make(t.AttestationEquivocation, who, first=ours, second=theirs)


def commit_of(bench: Market, spec, proof, node: Account = NODE, **fields: object):
    """A commit that a node signs, at any time."""
    values = {"task_id": spec.task_id, "attempt": 0, "proof_cid": PROOF_CID, "header": proof}
    return bench.make(t.Commit, node, **(values | fields))


def proofs_tx(bench: Market, spec, first=None, second=None, who: Account = STRANGER):
    first = first if first is not None else commit_of(bench, spec, make_header(spec))
    second = second if second is not None else commit_of(bench, spec, other_header(spec))
    return bench.make(t.ProofEquivocation, who, first=first, second=second)


def stake_seats(bench: Market, seats: Sequence[int]) -> None:
    for i in seats:
        bench.do(t.Transfer, BUYER, to=SEAT_ACCOUNTS[i].address, amount_wei=10 * DAI)
        bench.do(t.Stake, SEAT_ACCOUNTS[i], amount_wei=10 * DAI)


def test_a_seat_that_signs_two_blocks_of_one_round_loses_half() -> None:
    bench = Market()
    stake_seats(bench, [3])
    receipt = bench.run(blocks_tx(bench))
    assert bench.stake_of(SEAT_ACCOUNTS[3]) == 5 * DAI
    assert receipt.node == SEAT_ACCOUNTS[3].address
    assert sum(p.amount_wei for p in receipt.payments) == 5 * DAI
    assert bench.balance(STRANGER) == 5 * DAI // 10
    assert bench.state.supply().burned_wei == 2 * DAI


def test_a_fork_convicts_everybody_in_both_certificates() -> None:
    """An aggregate that verifies shows that each of its seats signed."""
    bench = Market()
    stake_seats(bench, range(21))
    bench.run(blocks_tx(bench, seats=range(14), others=range(7, 21)))
    stakes = [bench.stake_of(account) for account in SEAT_ACCOUNTS]
    assert stakes == [10 * DAI] * 7 + [5 * DAI] * 7 + [10 * DAI] * 7


def test_a_seat_that_accepts_and_rejects_one_proof_loses_half() -> None:
    bench = Market()
    stake_seats(bench, [3])
    spec = bench.reach(TaskState.COMMITTED)
    receipt = bench.run(findings_tx(bench, spec))
    assert receipt.task_id == spec.task_id
    assert bench.stake_of(SEAT_ACCOUNTS[3]) == 5 * DAI


def test_another_confidence_is_another_finding() -> None:
    bench = Market()
    stake_seats(bench, [3])
    spec = bench.reach(TaskState.COMMITTED)
    bench.run(findings_tx(bench, spec, decision=Decision.ACCEPTED, confidence_ppm=994_000))
    assert bench.stake_of(SEAT_ACCOUNTS[3]) == 5 * DAI


def test_a_node_that_commits_to_two_proofs_loses_half() -> None:
    bench = Market()
    spec = bench.reach(TaskState.COMMITTED)
    receipt = bench.run(proofs_tx(bench, spec))
    assert bench.stake_of(NODE) == STAKE // 2 and receipt.node == NODE.address
    assert bench.balance(STRANGER) == STAKE // 20


def test_a_seat_without_a_stake_is_written_down() -> None:
    """The bundled committee has no stakes: its operator is told, and nothing is taken."""
    bench = Market()
    tx = blocks_tx(bench)
    receipt = bench.run(tx)
    assert receipt.payments == () and receipt.node == SEAT_ACCOUNTS[3].address
    assert bench.refused(blocks_tx(bench)) == "duplicate"


def test_an_offence_counts_once_whatever_shows_it() -> None:
    bench = Market()
    stake_seats(bench, [3, 4])
    one, two, three = (header(bench, state_root=keccak256(bytes([i]))) for i in range(3))
    bench.run(blocks_tx(bench, one, two))
    for first, second in ((one, two), (two, one), (one, three), (three, two)):
        assert bench.refused(blocks_tx(bench, first, second, who=OTHER)) == "duplicate"
    # Another seat's part in it is another offence, and so is another round.
    bench.run(blocks_tx(bench, three, two, seats=(3, 4)))
    assert [bench.stake_of(SEAT_ACCOUNTS[i]) for i in (3, 4)] == [5 * DAI] * 2
    bench.run(blocks_tx(bench, header(bench, round=3), header(bench, round=3, parent=bytes(32))))
    assert bench.stake_of(SEAT_ACCOUNTS[3]) == 5 * DAI // 2


@pytest.mark.parametrize("kind", ["blocks", "findings", "proofs"])
def test_the_order_of_the_two_statements_does_not_matter(kind: str) -> None:
    bench = Market()
    spec = bench.reach(TaskState.COMMITTED)
    make: Callable[[], t.Transaction] = {
        "blocks": lambda: blocks_tx(bench),
        "findings": lambda: findings_tx(bench, spec),
        "proofs": lambda: proofs_tx(bench, spec),
    }[kind]
    tx = make()
    swapped = {"first": tx.second, "second": tx.first}
    if kind == "blocks":
        swapped |= {"first_votes": tx.second_votes, "second_votes": tx.first_votes}
    turned = bench.make(type(tx), STRANGER, **swapped)
    assert tx.mark() == turned.mark() and tx.intent() == turned.intent()
    bench.run(tx)
    again = bench.make(type(tx), OTHER, **swapped)
    assert bench.refused(again) == "duplicate"


def test_an_account_with_several_seats_loses_half_once() -> None:
    seats = [seat.model_copy(update={"account": OTHER.address}) for seat in COMMITTEE.seats]
    committee = COMMITTEE.model_copy(update={"seats": tuple(seats)})
    bench = Market(GENESIS.model_copy(update={"committee": committee}))
    bench.run(blocks_tx(bench, seats=range(7), who=BUYER))
    assert bench.stake_of(OTHER) == STAKE // 2
    assert bench.refused(blocks_tx(bench, seats=(12,), who=BUYER)) == "duplicate"
    assert bench.stake_of(OTHER) == STAKE // 2


def test_who_reports_itself_gets_no_share() -> None:
    bench = Market()
    spec = bench.reach(TaskState.COMMITTED)
    before = bench.balance(NODE)
    bench.run(proofs_tx(bench, spec, who=NODE))
    assert bench.balance(NODE) == before and bench.stake_of(NODE) == STAKE // 2


def test_unbonding_stake_does_not_escape() -> None:
    bench = Market()
    spec = bench.reach(TaskState.COMMITTED)
    bench.do(t.Unstake, NODE, amount_wei=60 * DAI)
    bench.run(proofs_tx(bench, spec))
    account = bench.state.account(NODE.address)
    assert (account.stake_wei, account.unbonding_wei) == (20 * DAI, 30 * DAI)


def test_stake_is_in_reach_as_long_as_evidence_counts() -> None:
    """Of the longest task, and of a node that begins to leave as soon as it has it."""
    bench = Market()
    params = bench.state.params()
    deadline_ms = bench.now + params.staking.unbonding_ms - params.vouching_ms
    spec = bench.reach(TaskState.ASSIGNED, make_spec(deadline_ms=deadline_ms))
    bench.do(t.Unstake, NODE, amount_wei=STAKE - bench.bonded(NODE))
    bench.now = deadline_ms - 1
    bench.commit(spec)
    bench.now = deadline_ms + params.disputes.evidence_ms - 1
    lost = bench.run(proofs_tx(bench, spec, who=BUYER)).payments
    assert sum(payment.amount_wei for payment in lost) == STAKE // 2


@pytest.mark.parametrize(("late_ms", "stale"), [(DAY, False), (DAY + 1, True)])
@pytest.mark.parametrize("back_dated", [0, 30 * DAY], ids=["", "one is dated back"])
def test_evidence_counts_for_a_time(late_ms: int, stale: bool, back_dated: int) -> None:
    bench = Market()
    first = header(bench)
    second = header(bench, parent=bytes(32), timestamp_ms=bench.now - back_dated)
    bench.now += late_ms
    tx = blocks_tx(bench, first, second)
    if stale:
        assert bench.refused(tx) == "expired"
    else:
        bench.run(tx)


@pytest.mark.parametrize("kind", ["findings", "proofs"])
@pytest.mark.parametrize(("late_ms", "stale"), [(DAY, False), (DAY + 1, True)])
def test_evidence_about_a_task_counts_for_a_time(kind: str, late_ms: int, stale: bool) -> None:
    bench = Market()
    spec = bench.reach(TaskState.COMMITTED)
    bench.now = spec.deadline_ms + late_ms
    tx = findings_tx(bench, spec) if kind == "findings" else proofs_tx(bench, spec)
    if stale:
        assert bench.refused(tx) == "expired"
    else:
        bench.run(tx)


def _two_proofs_of_one_task(bench: Market) -> t.Transaction:
    """What a buyer can bring about who shows the committee two proofs: no offence of a seat."""
    spec = bench.reach(TaskState.COMMITTED)
    return findings_tx(bench, spec, output_cid=cid_of(b"x"), proof_cid=cid_of(b"y"))


def _finding(**changes: object) -> Callable[[Market], t.Transaction]:
    return lambda bench: findings_tx(bench, bench.reach(TaskState.COMMITTED), **changes)


def _block(seats: Sequence[int] = (3,), **changes: object) -> Callable[[Market], t.Transaction]:
    def attack(bench: Market) -> t.Transaction:
        return blocks_tx(bench, None, header(bench, **({"parent": bytes(32)} | changes)), seats)

    return attack


def _both_blocks(**changes: object) -> Callable[[Market], t.Transaction]:
    def attack(bench: Market) -> t.Transaction:
        pair = (header(bench, **({"parent": parent} | changes)) for parent in (META, bytes(32)))
        return blocks_tx(bench, *pair)

    return attack


def _same_block(bench: Market) -> t.Transaction:
    return blocks_tx(bench, header(bench), header(bench))


def _framed(bench: Market) -> t.Transaction:
    """Seat 3's bit over seat 4's signature."""
    second = header(bench, parent=bytes(32))
    forged = votes(second, (4,)).model_copy(update={"signers": 1 << 3})
    return blocks_tx(bench, second=second, second_votes=forged)


def _framed_by_aggregation(bench: Market) -> t.Transaction:
    """An honest seat is named beside thirteen that did sign."""
    second = header(bench, parent=bytes(32))
    forged = votes(second, range(13)).model_copy(update={"signers": (1 << 14) - 1})
    return blocks_tx(bench, second=second, seats=range(14), second_votes=forged)


def _another_message(bench: Market) -> t.Transaction:
    """A signature over the block's hash without its purpose."""
    second = header(bench, parent=bytes(32))
    forged = QuorumCertificate(signers=1 << 3, signature=SEAT_KEYS[3].sign(second.digest))
    return blocks_tx(bench, second=second, second_votes=forged)


def _no_such_seat(bench: Market) -> t.Transaction:
    tx = blocks_tx(bench)
    wrong = {
        f"{name}_votes": getattr(tx, f"{name}_votes").model_copy(update={"signers": 1 << 21})
        for name in ("first", "second")
    }
    return blocks_tx(bench, **wrong)


def _altered_finding(bench: Market) -> t.Transaction:
    spec = bench.reach(TaskState.COMMITTED)
    tx = findings_tx(bench, spec)
    forged = tx.first.model_copy(update={"decision": Decision.REJECTED})
    return bench.make(t.AttestationEquivocation, STRANGER, first=tx.first, second=forged)


def _proofs(**changes: Callable[[Market, object], t.Transaction]):
    def attack(bench: Market) -> t.Transaction:
        spec = bench.reach(TaskState.COMMITTED)
        return proofs_tx(bench, spec, **{name: of(bench, spec) for name, of in changes.items()})

    return attack


def _signed_again(bench: Market, spec) -> t.Transaction:
    """The same header in another transaction: a retry."""
    return commit_of(bench, spec, make_header(spec), nonce=40, valid_until_ms=bench.now)


def _brought_by_the_buyer(bench: Market) -> t.Transaction:
    """Two headers a node gave to a buyer who called it twice and signs the commits itself."""
    spec = bench.reach(TaskState.COMMITTED)
    commits = [
        commit_of(bench, spec, proof, BUYER) for proof in (make_header(spec), other_header(spec))
    ]
    return proofs_tx(bench, spec, *commits)


def _signed_by_the_buyer(bench: Market, spec) -> t.Transaction:
    forged = commit_of(bench, spec, other_header(spec))
    return forged.signed(BUYER, bench.machine.ledger_id)


def _for_another_ledger(bench: Market, spec) -> t.Transaction:
    return commit_of(bench, spec, other_header(spec)).signed(NODE, META)


def _unsigned_header(bench: Market, spec) -> t.Transaction:
    stolen = other_header(spec).model_copy(update={"signature": make_header(spec).signature})
    return commit_of(bench, spec, stolen)


def _nothing_at_stake(bench: Market) -> t.Transaction:
    spec = bench.reach(TaskState.COMMITTED)
    proofs = [make_header(spec, STRANGER), other_header(spec, STRANGER)]
    return proofs_tx(bench, spec, *[commit_of(bench, spec, each, STRANGER) for each in proofs])


def _of_an_attempt_to_come(bench: Market) -> t.Transaction:
    """A node that could show its offence before it has much to lose could then commit it."""
    spec = bench.reach(TaskState.COMMITTED)
    proofs = make_header(spec), other_header(spec)
    return proofs_tx(bench, spec, *[commit_of(bench, spec, each, attempt=1) for each in proofs])


def _before_it_was_given(bench: Market) -> t.Transaction:
    return proofs_tx(bench, bench.reach(TaskState.OPEN))


def _unknown_task(bench: Market) -> t.Transaction:
    return proofs_tx(bench, make_spec(77))


INNOCENT: list[tuple[str, str, Callable[[Market], t.Transaction]]] = [
    ("the same block twice", "bad-field", _same_block),
    ("blocks of two heights", "bad-field", _block(height=8)),
    ("blocks of two rounds", "bad-field", _block(round=3)),
    ("a block of another ledger", "bad-field", _block(ledger_id=META)),
    ("blocks of another ledger", "bad-field", _both_blocks(ledger_id=META)),
    ("blocks of another epoch", "bad-field", _both_blocks(epoch=2)),
    ("blocks of a height to come", "bad-state", _both_blocks(height=Market.height + 1)),
    ("blocks of another committee", "bad-field", _both_blocks(committee=META)),
    ("nobody signed both", "bad-field", lambda b: blocks_tx(b, seats=(3,), others=(4,))),
    ("a seat the committee does not have", "bad-field", _no_such_seat),
    ("another seat's signature", "bad-signature", _framed),
    ("an honest seat among liars", "bad-signature", _framed_by_aggregation),
    ("a signature of something else", "bad-signature", _another_message),
    ("the same finding twice", "bad-field", _finding(decision=Decision.ACCEPTED)),
    ("findings about two attempts", "bad-field", _finding(attempt=1)),
    ("findings about two nodes", "bad-field", _finding(node=OTHER.address)),
    ("findings about two proofs", "bad-field", _two_proofs_of_one_task),
    ("findings about two tasks", "bad-field", _finding(task_id=META)),
    ("a finding for another ledger", "bad-field", _finding(ledger_id=META)),
    ("a finding of another epoch", "bad-field", _finding(epoch=2)),
    ("a finding altered", "bad-signature", _altered_finding),
    ("a retry", "bad-field", _proofs(second=_signed_again)),
    ("two headers without the node's commits", "bad-field", _brought_by_the_buyer),
    ("a commit signed by another", "bad-signature", _proofs(second=_signed_by_the_buyer)),
    ("a commit for another ledger", "bad-signature", _proofs(second=_for_another_ledger)),
    ("a header nobody signed", "bad-signature", _proofs(second=_unsigned_header)),
    (
        "commits in two attempts",
        "bad-field",
        _proofs(second=lambda b, s: commit_of(b, s, other_header(s), attempt=1)),
    ),
    (
        "commits of two nodes",
        "bad-field",
        _proofs(second=lambda b, s: commit_of(b, s, other_header(s, OTHER), OTHER)),
    ),
    (
        "another node's header",
        "bad-field",
        _proofs(second=lambda b, s: commit_of(b, s, other_header(s, OTHER))),
    ),
    ("nothing at stake", "bad-state", _nothing_at_stake),
    ("commits in an attempt to come", "bad-state", _of_an_attempt_to_come),
    ("commits in an attempt that is not the node's", "bad-state", _before_it_was_given),
    ("a task nobody opened", "unknown", _unknown_task),
]


@pytest.mark.parametrize(
    ("code", "attack"), [pytest.param(c, a, id=name) for name, c, a in INNOCENT]
)
def test_what_shows_no_offence_is_refused(code: str, attack) -> None:
    bench = Market()
    stake_seats(bench, [3])
    assert bench.refused(attack(bench)) == code


@settings(max_examples=25, deadline=None)
@given(
    first=st.sets(st.integers(0, 20), min_size=1),
    second=st.sets(st.integers(0, 20), min_size=1),
)
def test_exactly_those_who_signed_both_are_slashed(first: set[int], second: set[int]) -> None:
    bench = Market()
    stake_seats(bench, range(21))
    tx = blocks_tx(bench, seats=sorted(first), others=sorted(second))
    if first & second:
        bench.run(tx)
    else:
        assert bench.refused(tx) == "bad-field"
    for seat in range(21):
        left = 5 * DAI if seat in first & second else 10 * DAI
        assert bench.stake_of(SEAT_ACCOUNTS[seat]) == left
