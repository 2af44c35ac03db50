"""Batches on the ledger: paid leaf by leaf, once each, or not at all when one is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ledger_kinds as t
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_bench import META, Bench, snapshot
from ledger_kit import (
    BUYER,
    DAI,
    FREE,
    NODE,
    OTHER,
    SEAT_ACCOUNTS,
    SEAT_KEYS,
    STRANGER,
    T0,
    TREASURY,
    attest,
    info_of,
    make_genesis,
    make_spec,
)

from daifi_flows.cnft import Decision, token_id_of
from daifi_flows.encoding import cid_of, cid_sha256, keccak256
from daifi_flows.errors import TransactionRefused
from daifi_flows.keys import aggregate_bls
from daifi_flows.ledger import Params, TaskState
from daifi_flows.ledger._economics import EVIDENCE_ONE
from daifi_flows.ledger._epochs import NodeEpochRecord, ScheduleRecord, node_epoch_key
from daifi_flows.ledger._governance import ModelListing, ModelRecord
from daifi_flows.ledger._params import ParamsRecord, RollupParams
from daifi_flows.ledger._records import ZERO_ADDRESS
from daifi_flows.ledger._rollups import ClaimedWord, RollupRecord, rollup_key, word_key
from daifi_flows.ledger._rules.rollup import RULES
from daifi_flows.rollup import Batch, BatchAttestation, BatchStatement, Leaf, LeafProof

CHALLENGE, CLAIM, NOTICE = 60_000, 86_400_000, 3_000
GENESIS = make_genesis(
    params=Params(
        fees=FREE,
        rollup=RollupParams(
            challenge_ms=CHALLENGE,
            claim_ms=CLAIM,
            notice_ms=NOTICE,
            min_bond_wei=DAI,
            bond_ppm=500_000,
        ),
    )
)
OPERATOR, SUBMIT_BY = BUYER, T0 + 10_000
OUTPUT = cid_sha256(cid_of(b"output"))[1]
CUT_PPM = 150_000


def leaf(number: int, **changes: object) -> Leaf:
    made = Leaf(
        task_id=make_spec(number).task_id,
        node=NODE.address,
        owner=STRANGER.address,
        model=keccak256(b"m"),
        output=OUTPUT,
        amount_wei=DAI + 3 * number + 1,
        flops=10**12,
    )
    return made._replace(**changes)


def leaves(count: int, start: int = 0) -> Batch:
    return Batch.of(leaf(number) for number in range(start, start + count))


def attested(
    batch: Batch, signers: Sequence[int] = range(14), **changes: object
) -> BatchAttestation:
    """The committee's signature over a batch; ``changes`` are signed too."""
    values: dict[str, object] = {
        "ledger_id": GENESIS.ledger_id,
        "epoch": 1,
        "operator": OPERATOR.address,
        "root": batch.root,
        "count": batch.count,
        "total_wei": batch.total_wei,
        "submit_by_ms": SUBMIT_BY,
    }
    statement = BatchStatement.model_validate(values | changes)
    message = statement.message()
    return BatchAttestation(
        epoch=statement.epoch,
        signers=sum(1 << i for i in set(signers)),
        signature=aggregate_bls([SEAT_KEYS[i].sign(message) for i in signers]),
    )


class Rollups(Bench):
    """A bench where the buyer operates batches."""

    def __init__(self) -> None:
        super().__init__(GENESIS)

    def submission(self, batch: Batch, sender=OPERATOR, **changes: object) -> t.Transaction:
        fields: dict[str, object] = {
            "root": batch.root,
            "total_wei": batch.total_wei,
            "bond_wei": max(DAI, -(-batch.total_wei // 2)),
            "submit_by_ms": SUBMIT_BY,
            "leaves": batch.raw,
        }
        if "attestation" not in changes:
            fields["attestation"] = attested(batch)
        return self.make(t.SubmitBatch, sender, **(fields | changes))

    def submit(self, batch: Batch) -> Batch:
        self.run(self.submission(batch))
        return batch

    def claim(self, batch: Batch, index: int, **changes: object) -> t.Transaction:
        fields = {"batch": batch.root, "proof": batch.proof(index)}
        return self.make(t.ClaimLeaf, STRANGER, **(fields | changes))

    def record(self, batch: Batch) -> RollupRecord | None:
        return self.state.find(RollupRecord, rollup_key(batch.root))

    def after_challenge(self) -> None:
        self.now = T0 + 1 + CHALLENGE

    def after_claims(self) -> None:
        self.now = T0 + 1 + CHALLENGE + CLAIM

    def refused(self, tx: t.Transaction) -> str:
        """The code of the refusal, which changed nothing."""
        before = snapshot(self.state)
        with pytest.raises(TransactionRefused) as caught:
            self.run(tx)
        assert snapshot(self.state) == before
        return caught.value.details["code"]


# What is paid


def test_a_batch_holds_its_money_and_pays_the_committee_and_the_treasury() -> None:
    bench, batch = Rollups(), leaves(10)
    before = bench.balance(BUYER)
    receipt = bench.run(bench.submission(batch))
    total, bond = batch.total_wei, -(-batch.total_wei // 2)
    seat, treasury = total * 100_000 // 10**6 // 14, total * 50_000 // 10**6
    record = bench.record(batch)
    assert record is not None
    assert (record.escrow_wei, record.bond_wei) == (total - 14 * seat - treasury, bond)
    assert bench.balance(BUYER) == before - total - bond
    assert bench.balance(SEAT_ACCOUNTS[13]) == seat
    assert bench.balance(SEAT_ACCOUNTS[14]) == 0
    assert bench.state.supply().treasury_wei == treasury
    assert bench.state.supply().escrows_wei == record.escrow_wei + bond
    assert receipt.content == batch.root
    assert sum(payment.amount_wei for payment in receipt.payments) == 14 * seat + treasury


def test_every_leaf_pays_its_node_and_mints_its_token_once() -> None:
    bench, batch = Rollups(), leaves(300)
    bench.do(t.Register, NODE, info=info_of(NODE))
    bench.do(t.Stake, NODE, amount_wei=DAI)
    bench.run(bench.make(t.Transfer, OTHER, to=BUYER.address, amount_wei=200 * DAI))
    batch = bench.submit(Batch.of(leaf(i, amount_wei=DAI // 10 + i) for i in range(300)))
    bench.after_challenge()
    for index in (0, 255, 256, 299, 128):
        before = bench.balance(NODE)
        receipt = bench.run(bench.claim(batch, index))
        made = leaf(index)
        price = DAI // 10 + index
        assert bench.balance(NODE) - before == price - -(-price * CUT_PPM // 10**6)
        token = bench.state.token(token_id_of(made.task_id))
        assert token is not None
        assert (token.owner, token.task_id) == (STRANGER.address, made.task_id)
        assert token.content == receipt.content == keccak256(batch.leaf(index))
        assert (receipt.task_id, receipt.token_id) == (made.task_id, token.token_id)
        assert receipt.node == NODE.address
        assert bench.refused(bench.claim(batch, index)) == "duplicate"
    words = [bench.state.find(ClaimedWord, word_key(batch.root, word)) for word in range(2)]
    assert [
        index
        for index in range(300)
        if (word := words[index // 256]) is not None and word.claimed(index)
    ] == [0, 128, 255, 256, 299]
    assert bench.state.account(NODE.address).accepted == 5


@pytest.mark.parametrize(
    ("registered", "stake", "counts"),
    [(False, 0, 0), (False, DAI, 0), (True, DAI - 1, 0), (True, DAI, 1)],
)
def test_work_counts_only_for_a_registered_and_staked_node(registered, stake, counts) -> None:
    """A leaf may name any key: a thousand of them are one operator's without a stake."""
    bench = Rollups()
    if registered:
        bench.do(t.Register, NODE, info=info_of(NODE))
    if stake:
        bench.do(t.Stake, NODE, amount_wei=stake)
    batch = bench.submit(leaves(2))
    bench.after_challenge()
    before = bench.balance(NODE)
    bench.run(bench.claim(batch, 0))
    assert bench.balance(NODE) > before, "it is paid in any case"
    account = bench.state.account(NODE.address)
    assert (account.accepted, account.standing.accepted_e6) == (counts, counts * EVIDENCE_ONE)
    part = bench.state.find(NodeEpochRecord, node_epoch_key(NODE.address, 0))
    assert (part is not None) == bool(counts)
    schedule = bench.state.find(ScheduleRecord, ScheduleRecord.prefix)
    assert (schedule is not None and schedule.used_mflop > 0) == bool(counts)


def test_a_leaf_without_an_owner_is_paid_and_mints_nothing() -> None:
    bench = Rollups()
    batch = bench.submit(Batch.of([leaf(0, owner=ZERO_ADDRESS)]))
    bench.after_challenge()
    receipt = bench.run(bench.claim(batch, 0))
    assert receipt.token_id is None
    assert bench.state.token(token_id_of(leaf(0).task_id)) is None
    assert bench.refused(bench.claim(batch, 0)) == "duplicate"


def test_a_leaf_without_a_price_mints_and_pays_nothing() -> None:
    bench = Rollups()
    batch = bench.submit(Batch.of([leaf(0, amount_wei=0), leaf(1)]))
    bench.after_challenge()
    receipt = bench.run(bench.claim(batch, 0))
    assert receipt.payments == ()
    assert bench.state.token(receipt.token_id or b"") is not None


def test_the_bond_comes_back_once_after_the_challenge_window() -> None:
    bench, batch = Rollups(), leaves(3)
    bench.submit(batch)
    finalise = {"batch": batch.root}
    assert bench.refused(bench.make(t.FinaliseBatch, STRANGER, **finalise)) == "bad-state"
    bench.after_challenge()
    before = bench.balance(BUYER)
    bench.do(t.FinaliseBatch, STRANGER, **finalise)
    assert bench.balance(BUYER) - before == -(-batch.total_wei // 2)
    assert bench.refused(bench.make(t.FinaliseBatch, STRANGER, **finalise)) == "duplicate"
    bench.run(bench.claim(batch, 1))


@pytest.mark.parametrize("finalised", [False, True])
def test_what_nobody_claims_goes_back_and_the_batch_is_forgotten(finalised: bool) -> None:
    bench, batch = Rollups(), leaves(3)
    entries = len(snapshot(bench.state))
    bench.submit(batch)
    bench.after_challenge()
    bench.run(bench.claim(batch, 2))
    if finalised:
        bench.do(t.FinaliseBatch, STRANGER, batch=batch.root)
    assert bench.refused(bench.make(t.CloseBatch, STRANGER, batch=batch.root)) == "bad-state"
    bench.after_claims()
    assert bench.refused(bench.claim(batch, 0)) == "expired"
    bench.do(t.CloseBatch, STRANGER, batch=batch.root)
    assert bench.record(batch) is None
    assert bench.state.find(ClaimedWord, word_key(batch.root, 0)) is None
    assert bench.state.supply().escrows_wei == 0
    assert bench.refused(bench.claim(batch, 0)) == "unknown"
    assert bench.refused(bench.make(t.CloseBatch, STRANGER, batch=batch.root)) == "unknown"
    # Too late for the committee's signature: nobody can settle the same leaves again.
    assert bench.refused(bench.submission(batch)) == "expired"
    assert len(snapshot(bench.state)) > entries


def test_ten_thousand_leaves_settle_in_one_transaction() -> None:
    bench = Rollups()
    batch = Batch.of(
        leaf(0, task_id=keccak256(b"%d" % i), amount_wei=10**15) for i in range(10_000)
    )
    tx = bench.submission(batch)
    assert t.parse_transaction(tx.encode()) == tx
    bench.run(tx)
    bench.after_challenge()
    bench.run(bench.claim(batch, 9_999))
    small = bench.make(t.Transfer, BUYER, to=NODE.address, amount_wei=1)
    assert len(tx.encode()) > 1_600_000 > len(small.encode())


# Attacks on the submission


def _attested(**changes: object) -> Callable[[Rollups], t.Transaction]:
    def attack(bench: Rollups) -> t.Transaction:
        batch = leaves(4)
        return bench.submission(batch, attestation=attested(batch, **changes))  # pyright: ignore

    return attack


def _changed(**changes: object) -> Callable[[Rollups], t.Transaction]:
    return lambda bench: bench.submission(leaves(4), **changes)


def _agreed(**changes: object) -> Callable[[Rollups], t.Transaction]:
    """A claim that even the committee signed."""

    def attack(bench: Rollups) -> t.Transaction:
        batch = leaves(4)
        return bench.submission(batch, attestation=attested(batch, **changes), **changes)  # pyright: ignore

    return attack


def _raw(raw: bytes) -> Callable[[Rollups], t.Transaction]:
    """Leaves that are no batch, with everything else as if they were."""

    def attack(bench: Rollups) -> t.Transaction:
        batch = leaves(4)
        finding = attested(batch, count=len(raw) // 160)
        return bench.submission(batch, attestation=finding, leaves=raw)

    return attack


def _overflow(bench: Rollups) -> t.Transaction:
    """Amounts that add up to one wei modulo 2^128."""
    batch = Batch.of([leaf(0, amount_wei=2**128 - 1), leaf(1, amount_wei=2)])
    finding = attested(batch, total_wei=1)
    return bench.submission(batch, total_wei=1, bond_wei=DAI, attestation=finding)


def _huge(bench: Rollups) -> t.Transaction:
    batch = Batch.of(leaf(i, amount_wei=2**128 - 1) for i in range(5))
    return bench.submission(batch)


def _replayed(bench: Rollups) -> t.Transaction:
    return bench.submission(bench.submit(leaves(4)))


def _replayed_with_more_bond(bench: Rollups) -> t.Transaction:
    return bench.submission(bench.submit(leaves(4)), bond_wei=90 * DAI)


def _replayed_when_final(bench: Rollups) -> t.Transaction:
    batch = bench.submit(leaves(4))
    later = T0 + CHALLENGE + 10_000
    bench.after_challenge()
    bench.do(t.FinaliseBatch, STRANGER, batch=batch.root)
    finding = attested(batch, submit_by_ms=later)
    return bench.submission(batch, attestation=finding, submit_by_ms=later)


def _late(bench: Rollups) -> t.Transaction:
    bench.now = SUBMIT_BY
    return bench.submission(leaves(4))


def _for_ever(bench: Rollups) -> t.Transaction:
    batch, by = leaves(4), T0 + 2 + CHALLENGE + CLAIM
    return bench.submission(batch, attestation=attested(batch, submit_by_ms=by), submit_by_ms=by)


FOUR = leaves(4)
SUBMISSIONS: list[tuple[str, str, Callable[[Rollups], t.Transaction]]] = [
    ("thirteen seats", "bad-signature", _attested(signers=range(13))),
    ("one seat twice", "bad-signature", _attested(signers=[*range(13), 0])),
    ("signed for another ledger", "bad-signature", _attested(ledger_id=META)),
    ("signed for another operator", "bad-signature", _attested(operator=NODE.address)),
    ("signed for another root", "bad-signature", _attested(root=META)),
    ("signed for fewer leaves", "bad-signature", _attested(count=3)),
    ("signed for another total", "bad-signature", _attested(total_wei=1)),
    ("signed for another time", "bad-signature", _attested(submit_by_ms=SUBMIT_BY + 1)),
    ("signed in another epoch", "bad-field", _attested(epoch=2)),
    ("a later time than was signed", "bad-signature", _changed(submit_by_ms=SUBMIT_BY + 1)),
    ("somebody else's batch", "bad-signature", lambda b: b.submission(FOUR, OTHER)),
    ("another root", "bad-field", _agreed(root=META)),
    ("another root than was signed", "bad-signature", _changed(root=META)),
    ("another total", "bad-field", _agreed(total_wei=FOUR.total_wei - 1)),
    ("another total than was signed", "bad-signature", _changed(total_wei=FOUR.total_wei - 1)),
    ("too small a bond", "bad-field", _changed(bond_wei=-(-FOUR.total_wei // 2) - 1)),
    ("no bond", "bad-field", _changed(bond_wei=0)),
    ("no leaves", "bad-field", _raw(b"")),
    ("a leaf and a half", "bad-field", _raw(FOUR.raw[:240])),
    ("a leaf cut off", "bad-field", _raw(FOUR.raw[:-160])),
    ("leaves in another order", "bad-field", _raw(FOUR.raw[160:] + FOUR.raw[:160])),
    ("a task twice", "bad-field", _raw(FOUR.raw[:480] + FOUR.raw[:160])),
    ("amounts that overflow", "bad-field", _overflow),
    ("more than the operator has", "insufficient-funds", _huge),
    ("a batch again", "duplicate", _replayed),
    ("a batch again with another bond", "duplicate", _replayed_with_more_bond),
    ("a final batch again", "duplicate", _replayed_when_final),
    ("a batch too late", "expired", _late),
    ("a batch to be submitted for ever", "bad-field", _for_ever),
]


@pytest.mark.parametrize(
    ("code", "attack"), [pytest.param(c, a, id=name) for name, c, a in SUBMISSIONS]
)
def test_a_wrong_submission_is_refused(
    code: str, attack: Callable[[Rollups], t.Transaction]
) -> None:
    bench = Rollups()
    assert bench.refused(attack(bench)) == code


# Attacks on claims

BATCH, TWIN = leaves(9), Batch.of([leaf(number, amount_wei=7 * DAI) for number in range(9)])
GOOD = BATCH.proof(5)
CLAIMS: dict[str, tuple[str, LeafProof]] = {
    "a leaf of another batch": ("bad-proof", TWIN.proof(5)),
    "another batch's leaf on this path": (
        "bad-proof",
        GOOD.model_copy(update={"leaf": TWIN.leaf(5)}),
    ),
    "a bigger amount": (
        "bad-proof",
        GOOD.model_copy(update={"leaf": leaf(5, amount_wei=2 * DAI).encode()}),
    ),
    "another node": (
        "bad-proof",
        GOOD.model_copy(update={"leaf": leaf(5, node=STRANGER.address).encode()}),
    ),
    "a wrong index": ("bad-proof", GOOD.model_copy(update={"index": 4})),
    "an index past the end": ("bad-proof", GOOD.model_copy(update={"index": 9})),
    "an index past the width": ("bad-proof", GOOD.model_copy(update={"index": 5 + 16})),
    "an index past the word": ("bad-proof", GOOD.model_copy(update={"index": 5 + 256})),
    "no path": ("bad-proof", GOOD.model_copy(update={"path": ()})),
    "a short path": ("bad-proof", GOOD.model_copy(update={"path": GOOD.path[:-1]})),
    "a long path": ("bad-proof", GOOD.model_copy(update={"path": (*GOOD.path, META)})),
    "a forged path": ("bad-proof", GOOD.model_copy(update={"path": (META, *GOOD.path[1:])})),
    "two hashes swapped": (
        "bad-proof",
        GOOD.model_copy(update={"path": (GOOD.path[1], GOOD.path[0], *GOOD.path[2:])}),
    ),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_a_wrong_proof_claims_nothing(name: str) -> None:
    bench = Rollups()
    bench.submit(BATCH)
    bench.after_challenge()
    code, proof = CLAIMS[name]
    assert bench.refused(bench.claim(BATCH, 5, proof=proof)) == code
    bench.run(bench.claim(BATCH, 5))


def test_nothing_is_claimed_before_the_window_ends() -> None:
    bench = Rollups()
    bench.submit(BATCH)
    bench.now = T0 + CHALLENGE
    assert bench.refused(bench.claim(BATCH, 0)) == "bad-state"
    bench.now += 1
    bench.run(bench.claim(BATCH, 0))


def test_nothing_is_claimed_from_a_batch_that_is_not_there() -> None:
    bench = Rollups()
    assert bench.refused(bench.claim(BATCH, 0)) == "unknown"


def test_a_task_in_two_batches_is_paid_and_minted_once() -> None:
    """Nobody proved the fraud in time: the second claim gets nothing all the same."""
    bench = Rollups()
    bench.submit(BATCH)
    bench.submit(TWIN)
    bench.after_challenge()
    bench.run(bench.claim(BATCH, 3))
    assert bench.refused(bench.claim(TWIN, 3)) == "duplicate"


def test_a_task_that_was_settled_by_itself_is_not_paid_again() -> None:
    bench = Rollups()
    bench.submit(BATCH)
    bench.reach(TaskState.COMMITTED, make_spec(3))
    finding = attest(make_spec(3), ledger_id=GENESIS.ledger_id)
    bench.do(t.Settle, BUYER, attestation=finding, metadata=META)
    bench.after_challenge()
    assert bench.refused(bench.claim(BATCH, 3)) == "duplicate"


def test_a_leaf_that_names_no_node_is_not_paid_to_nobody() -> None:
    bench = Rollups()
    batch = bench.submit(Batch.of([leaf(0, node=ZERO_ADDRESS)]))
    bench.after_challenge()
    assert bench.refused(bench.claim(batch, 0)) == "bad-field"


# Fraud


def settled_before(bench: Rollups, number: int) -> None:
    """Task ``number`` settled by itself, just long enough before any batch."""
    bench.reach(TaskState.COMMITTED, make_spec(number))
    finding = attest(make_spec(number), ledger_id=GENESIS.ledger_id)
    bench.do(t.Settle, BUYER, attestation=finding, metadata=META)
    bench.now += NOTICE + 1


def rejected(number: int, **changes: object):
    return attest(
        make_spec(number),
        Decision.REJECTED,
        **({"ledger_id": GENESIS.ledger_id} | changes),  # pyright: ignore
    )


def by_duplicate(bench: Rollups) -> tuple[Batch, t.Transaction]:
    earlier = bench.submit(leaves(6))
    bench.now += NOTICE + 1
    batch = bench.submit(leaves(4, start=5))
    return batch, bench.make(
        t.ProveDuplicate,
        STRANGER,
        batch=batch.root,
        proof=batch.proof(0),
        earlier=earlier.root,
        earlier_proof=earlier.proof(5),
    )


def by_settlement(bench: Rollups) -> tuple[Batch, t.Transaction]:
    settled_before(bench, 2)
    batch = bench.submit(leaves(4))
    return batch, bench.make(t.ProveSettled, STRANGER, batch=batch.root, proof=batch.proof(2))


def by_rejection(bench: Rollups) -> tuple[Batch, t.Transaction]:
    batch = bench.submit(leaves(4))
    return batch, bench.make(
        t.ProveRejected,
        STRANGER,
        batch=batch.root,
        proof=batch.proof(1),
        attestation=rejected(1),
    )


Fraud = Callable[[Rollups], tuple[Batch, t.Transaction]]
FRAUDS: list[Fraud] = [by_duplicate, by_settlement, by_rejection]
each_fraud = pytest.mark.parametrize("fraud", FRAUDS)


@each_fraud
def test_a_wrong_leaf_costs_half_the_bond_and_returns_the_rest(fraud: Fraud) -> None:
    bench = Rollups()
    batch, tx = fraud(bench)
    record = bench.record(batch)
    assert record is not None
    before, burned = bench.balance(BUYER), bench.state.supply().burned_wei
    treasury = bench.state.supply().treasury_wei
    receipt = bench.run(tx)
    slashed = record.bond_wei // 2
    reporter, burn = slashed // 10, slashed * 4 // 10
    assert bench.balance(STRANGER) == reporter
    assert bench.state.supply().burned_wei - burned == burn
    assert bench.state.supply().treasury_wei - treasury == slashed - reporter - burn
    assert bench.balance(BUYER) - before == record.escrow_wei + record.bond_wei - slashed
    assert sum(p.amount_wei for p in receipt.payments) == record.escrow_wei + record.bond_wei
    assert bench.record(batch) is None
    bench.after_challenge()
    assert bench.refused(bench.claim(batch, 3)) == "unknown"


@each_fraud
def test_fraud_is_proven_once_and_in_time(fraud: Fraud) -> None:
    bench = Rollups()
    _, tx = fraud(bench)
    bench.now += CHALLENGE
    assert bench.refused(tx) == "expired"
    bench.now -= 1
    bench.run(tx)
    again = tx.model_copy(update={"nonce": 1}).signed(STRANGER, GENESIS.ledger_id)
    assert bench.refused(again) == "unknown"


@each_fraud
def test_an_operator_that_reports_itself_earns_nothing_back(fraud: Fraud) -> None:
    bench = Rollups()
    batch, tx = fraud(bench)
    record, nonce = bench.record(batch), bench.state.account(BUYER.address).nonce
    assert record is not None
    own = tx.model_copy(update={"sender": BUYER.address, "nonce": nonce})
    before = bench.balance(BUYER)
    bench.run(own.signed(BUYER, GENESIS.ledger_id))
    slashed = record.bond_wei // 2
    assert bench.balance(BUYER) - before == record.escrow_wei + record.bond_wei - slashed


@each_fraud
def test_fraud_needs_a_leaf_of_the_batch(fraud: Fraud) -> None:
    bench = Rollups()
    batch, tx = fraud(bench)
    proof: LeafProof = tx.proof  # pyright: ignore
    other = Batch.of([leaf(number, amount_wei=9 * DAI) for number in range(4)])
    for forged in (
        proof.model_copy(update={"index": proof.index ^ 1}),
        proof.model_copy(update={"path": proof.path[:-1]}),
        other.proof(proof.index),
    ):
        bad = tx.model_copy(update={"proof": forged}).signed(STRANGER, GENESIS.ledger_id)
        assert bench.refused(bad) == "bad-proof"
    assert bench.record(batch) is not None


def test_the_earlier_of_two_batches_is_not_the_wrong_one() -> None:
    bench = Rollups()
    earlier = bench.submit(leaves(6))
    bench.now += NOTICE + 1
    later = bench.submit(leaves(4, start=5))

    def accuse(batch: Batch, at: int, other: Batch, other_at: int) -> t.Transaction:
        return bench.make(
            t.ProveDuplicate,
            STRANGER,
            batch=batch.root,
            proof=batch.proof(at),
            earlier=other.root,
            earlier_proof=other.proof(other_at),
        )

    assert bench.refused(accuse(earlier, 5, later, 0)) == "bad-field"
    assert bench.refused(accuse(later, 0, later, 0)) == "bad-field"
    assert bench.refused(accuse(later, 1, earlier, 5)) == "bad-proof"
    bench.run(accuse(later, 0, earlier, 5))
    assert bench.record(earlier) is not None
    assert bench.refused(accuse(later, 0, earlier, 5)) == "unknown"


def test_a_task_settled_with_or_after_the_batch_is_no_fraud() -> None:
    bench = Rollups()
    batch = bench.submit(leaves(4))
    accuse = {"batch": batch.root, "proof": batch.proof(2)}
    assert bench.refused(bench.make(t.ProveSettled, STRANGER, **accuse)) == "bad-proof"
    bench.reach(TaskState.COMMITTED, make_spec(2))
    assert bench.refused(bench.make(t.ProveSettled, STRANGER, **accuse)) == "bad-proof"
    for later in (0, 1):
        bench.now += later
        if not later:
            finding = attest(make_spec(2), ledger_id=GENESIS.ledger_id)
            bench.do(t.Settle, BUYER, attestation=finding, metadata=META)
        assert bench.refused(bench.make(t.ProveSettled, STRANGER, **accuse)) == "bad-proof"


@pytest.mark.parametrize("fraud", [by_duplicate, by_settlement])
def test_an_operator_is_not_framed_by_what_became_final_just_before(fraud: Fraud) -> None:
    """Whoever holds another finding about the task could bring it when it sees the batch come."""
    bench = Rollups()
    batch, tx = fraud(bench)
    record = bench.record(batch)
    assert record is not None
    sooner = record.model_copy(update={"submitted_ms": record.submitted_ms - 1})
    bench.state.apply({record.key(): sooner})
    assert bench.refused(tx) == "bad-proof"
    bench.state.apply({record.key(): record})
    bench.run(tx)


def test_a_task_claimed_from_an_earlier_batch_counts_as_settled() -> None:
    bench = Rollups()
    first = bench.submit(leaves(4))
    bench.after_challenge()
    bench.run(bench.claim(first, 3))
    bench.now += NOTICE + 1
    batch, by = leaves(3, start=3), bench.now + 10_000
    finding = attested(batch, submit_by_ms=by)
    bench.run(bench.submission(batch, attestation=finding, submit_by_ms=by))
    bench.do(t.ProveSettled, STRANGER, batch=batch.root, proof=batch.proof(0))
    assert bench.record(batch) is None


@pytest.mark.parametrize(
    ("code", "attestation"),
    [
        ("bad-field", attest(make_spec(1), ledger_id=GENESIS.ledger_id)),
        ("bad-field", rejected(2)),
        ("bad-field", rejected(1, node=OTHER.address)),
        ("bad-field", rejected(1, output_cid=cid_of(b"another"))),
        ("bad-field", rejected(1, epoch=2)),
        ("bad-field", rejected(1, ledger_id=META)),
        ("bad-signature", rejected(1, signers=range(13))),
        (
            "bad-signature",
            attest(make_spec(1), ledger_id=GENESIS.ledger_id).model_copy(
                update={"decision": Decision.REJECTED}
            ),
        ),
    ],
    ids=[
        "an acceptance",
        "another task's rejection",
        "another node's rejection",
        "another answer's rejection",
        "another epoch's rejection",
        "another ledger's rejection",
        "thirteen seats",
        "an acceptance made a rejection",
    ],
)
def test_what_is_no_rejection_of_the_leaf_proves_nothing(code: str, attestation: object) -> None:
    bench = Rollups()
    batch = bench.submit(leaves(4))
    fields = {"batch": batch.root, "proof": batch.proof(1), "attestation": attestation}
    assert bench.refused(bench.make(t.ProveRejected, STRANGER, **fields)) == code


@pytest.mark.parametrize("whitelist_only", [0, 1])
def test_a_batch_keeps_to_what_governance_says_of_models(whitelist_only: int) -> None:
    bench = Rollups()
    params = bench.state.params()
    rules = params.governance.model_copy(update={"whitelist_only": whitelist_only})
    params = params.model_copy(update={"governance": rules})

    def put(listing: ModelListing) -> None:
        records = ModelRecord(digest=leaf(0).model, listing=listing), ParamsRecord(params=params)
        bench.state.apply({record.key(): record for record in records})

    put(ModelListing.ALLOW)
    other = Batch.of([leaf(0), leaf(1), leaf(2, model=META)])
    if whitelist_only:
        assert bench.refused(bench.submission(other)) == "model-barred"
    else:
        bench.submit(other)
    batch = bench.submit(Batch.of([leaf(3), leaf(4)]))
    put(ModelListing.DENY)
    last = Batch.of([leaf(5, model=META), leaf(6)])
    assert bench.refused(bench.submission(last)) == "model-barred"
    bench.after_challenge()
    bench.run(bench.claim(batch, 0))


def test_a_batch_proven_wrong_can_be_put_right_and_submitted_again() -> None:
    bench = Rollups()
    batch, tx = by_rejection(bench)
    bench.run(tx)
    right = Batch.of([leaf(0), leaf(2), leaf(3)])
    bench.submit(right)
    bench.after_challenge()
    bench.run(bench.claim(right, 0))
    assert bench.record(batch) is None


# Any order of claims pays what the leaves say and never more than was held


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 10**19), min_size=1, max_size=12),
    st.data(),
)
def test_claims_in_any_order_pay_each_leaf_once(amounts: list[int], data: st.DataObject) -> None:
    bench = Rollups()
    batch = Batch.of(leaf(i, amount_wei=amount) for i, amount in enumerate(amounts))
    bench.submit(batch)
    bench.after_challenge()
    total, paid = sum(amounts), 0
    claims = data.draw(st.lists(st.integers(0, len(amounts) - 1), max_size=20))
    for position, index in enumerate(claims):
        tx = bench.claim(batch, index)
        if index in claims[:position]:
            assert bench.refused(tx) == "duplicate"
            continue
        bench.run(tx)
        paid += amounts[index] - -(-amounts[index] * CUT_PPM // 10**6)
        assert bench.balance(NODE) == 200 * DAI + paid
    record = bench.record(batch)
    assert record is not None
    shares = sum(bench.balance(seat) for seat in SEAT_ACCOUNTS)
    shares += bench.state.supply().treasury_wei
    assert record.escrow_wei + paid + shares == total
    if set(claims) == set(range(len(amounts))):
        assert record.escrow_wei < 14 + len(amounts) + 2  # rounding alone is left
    bench.after_claims()
    bench.do(t.CloseBatch, STRANGER, batch=batch.root)
    assert bench.balance(BUYER) == 1_000 * DAI - shares - paid
    assert bench.balance(TREASURY) == 0


def test_every_kind_of_the_family_has_a_rule() -> None:
    assert {kind.kind for kind in RULES} == {
        "submit-batch",
        "claim-leaf",
        "prove-duplicate",
        "prove-settled",
        "prove-rejected",
        "finalise-batch",
        "close-batch",
    }
