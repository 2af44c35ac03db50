"""What seats sign beside attestations: findings about disputed outputs, and batches.

**Disputes.** Every seat reviews the whole output again, by the same verification as any review,
and signs what it found itself: ``upheld`` or ``dismissed``. A seat signs one finding about one
dispute, ever, so two findings cannot both have a quorum. A seat that cannot tell signs nothing, and
can be asked again: else a node could ask early, leave out what it takes to tell, and have every
dispute about its output decided before anybody opens one. Where no finding has a quorum, the
dispute ends on the ledger when its time is over, and everybody gets their own back.

**Batches.** A batch is too large to be executed again. Its operator signs the statement, and with
it fixes every leaf; only then seats release their shares of the group's signature over it, whose
hash draws the sample of leaves (:func:`sample_leaves`). The operator shows the executions behind
those leaves, with their Merkle proofs; seats execute them again and sign when all are right. The
draw is the same for all seats: each leaf of it is checked by every honest signer, of whom a quorum
has more than half. Whoever does not like a draw can open another batch, :data:`MAX_UNSIGNED` times
an epoch at most; a batch in which a part ``b`` of the leaves is wrong is signed with probability
(1 − b)^s at each try, s the size of the sample.

No Ray, no clock, and no I/O but the journal's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from daifi_flows.cnft import Bytes65, Committee, Noun, ReviewRequest, VoteChoice
from daifi_flows.dispute import MAX_DISPUTES, DisputeFinding, DisputeStatement
from daifi_flows.encoding import cid_sha256, keccak256, tagged_hash
from daifi_flows.errors import CommitteeError, KeyMaterialError
from daifi_flows.judges._seat import SeatKeys
from daifi_flows.judges._statements_journal import MAX_UNSIGNED, StatementJournal
from daifi_flows.keys import Account, recover_address, verify_bls
from daifi_flows.rollup import MAX_BATCH_LEAVES, BatchStatement, Leaf, LeafProof

__all__ = [
    "SAMPLE_LEAVES",
    "BatchOrder",
    "BatchSample",
    "DisputeQuestion",
    "OpenBatch",
    "Question",
    "SampledLeaf",
    "StatementDesk",
    "StatementReply",
    "batch_beacon_message",
    "sample_leaves",
]

SAMPLE_LEAVES: Final = 32
"""Leaves of a batch that are executed again: a batch of which a tenth is wrong passes with
probability 3.4 %, one of which a fifth is with 0.08 %."""

Inspect = Callable[[ReviewRequest], VoteChoice]
"""Verifies and judges a whole output. Trouble on this side abstains."""


class BatchOrder(Noun):
    """A batch that its operator wants reviewed. The signature is over :meth:`digest`: nobody can
    use up another operator's tries."""

    statement: BatchStatement
    signature: Bytes65

    @classmethod
    def sign(cls, statement: BatchStatement, operator: Account) -> BatchOrder:
        """An order of the operator's."""
        return cls(statement=statement, signature=operator.sign(_order_digest(statement)))

    def signed(self) -> bool:
        """Whether the operator that the statement names signed it."""
        try:
            signer = recover_address(_order_digest(self.statement), self.signature)
        except KeyMaterialError:
            return False
        return signer == self.statement.operator


def _order_digest(statement: BatchStatement) -> bytes:
    return tagged_hash("daifi/batch-order/1", statement.plain())


def batch_beacon_message(statement: BatchStatement) -> bytes:
    """What holders of the group key sign to draw the sample of a batch."""
    return b"daifi/batch-beacon/1" + tagged_hash("daifi/batch/1", statement.plain())


def sample_leaves(beacon: bytes, count: int, size: int = SAMPLE_LEAVES) -> tuple[int, ...]:
    """Indices of ``size`` distinct leaves out of ``count`` (all, when there are no more), sorted.

    Draw i is Keccak-256 of the beacon (the group's signature) and i, scaled to the count (uniform
    to within 2^-240); what was drawn already is passed over.
    """
    if count <= size:
        return tuple(range(count))
    drawn: set[int] = set()
    number = 0
    while len(drawn) < size:
        hashed = keccak256(b"daifi/batch-sample/1" + number.to_bytes(8, "big") + beacon)
        drawn.add(int.from_bytes(hashed, "big") * count >> 256)
        number += 1
    return tuple(sorted(drawn))


@dataclass(frozen=True)
class DisputeQuestion:
    """Is this settled output wrong? ``number`` is which dispute about it, from 0."""

    review: ReviewRequest
    number: int

    def statement(self, finding: DisputeFinding) -> DisputeStatement:
        """What a seat that found ``finding`` signs.

        Raises:
            EncodingError: a number that no ledger has.
        """
        review, proof = self.review, self.review.result.proof
        return DisputeStatement.from_plain(
            {
                "ledger_id": review.ledger_id,
                "epoch": review.committee.epoch,
                "task_id": review.spec.task_id,
                "number": self.number,
                "attempt": review.attempt,
                "node": proof.node,
                "output_cid": proof.statement.output_cid,
                "proof_cid": proof.cid,
                "finding": finding,
            }
        )


@dataclass(frozen=True)
class OpenBatch:
    """Draw the sample of this batch."""

    order: BatchOrder


@dataclass(frozen=True)
class SampledLeaf:
    """A drawn leaf with its path, and the execution that it stands for."""

    proof: LeafProof
    review: ReviewRequest


@dataclass(frozen=True)
class BatchSample:
    """The drawn leaves of a batch, in order, and the group's signature that drew them."""

    order: BatchOrder
    beacon: bytes
    leaves: tuple[SampledLeaf, ...]


Question = DisputeQuestion | OpenBatch | BatchSample


@dataclass(frozen=True)
class StatementReply:
    """A host's answer.

    Attributes:
        seats: seats that have looked, whether they sign or cannot tell.
        signed: seat, finding (empty for a batch) and signature over the statement's message.
        shares: seat and its share of the group's signature over the batch.
        refused: why there is less than was asked for.
    """

    seats: tuple[int, ...] = ()
    signed: tuple[tuple[int, str, bytes], ...] = ()
    shares: tuple[tuple[int, bytes], ...] = ()
    refused: str | None = None


class StatementDesk:
    """One host's seats, where disputes and batches are concerned. Thread-safe; blocks.

    Args:
        committee: whose seats they are; others' statements are refused.
        keys: of the honest seats here.
        traitors: keys of dishonest ones, by what they sign about every dispute (tests only).
        inspect: verifies a whole output; called once for all seats here.
    """

    def __init__(
        self,
        committee: Committee,
        keys: Mapping[int, SeatKeys],
        journal: StatementJournal,
        inspect: Inspect,
        traitors: Mapping[int, tuple[SeatKeys, DisputeFinding]] | None = None,
    ) -> None:
        self._committee = committee
        self._keys = dict(keys)
        self._journal = journal
        self._inspect = inspect
        self._traitors = dict(traitors or {})
        self._busy = threading.Lock()

    def answer(self, question: Question) -> StatementReply:
        """Look into it, and sign what is so.

        Raises:
            CommitteeError: the question is for another committee, or makes no sense.
        """
        match question:
            case DisputeQuestion():
                return self._dispute(question)
            case OpenBatch(order=order):
                return self._open(order)
            case BatchSample():
                return self._check(question)
        raise CommitteeError(f"seats do not answer a {type(question).__name__}")

    # Disputes

    def _dispute(self, question: DisputeQuestion) -> StatementReply:
        if fault := _review_fault(question.review, self._committee):
            raise CommitteeError(f"the dispute cannot be looked into: {fault}")
        if not 0 <= question.number < MAX_DISPUTES:  # each number is a review of its own
            raise CommitteeError(f"an output is disputed at most {MAX_DISPUTES} times")
        statements = {finding: question.statement(finding) for finding in DisputeFinding}
        place = keccak256(statements[DisputeFinding.UNDECIDED].message())
        seats = tuple(self._keys)
        with self._busy:  # the same question, sent twice, waits here and then remembers
            found = self._journal.findings(seats, place)
            if len(found) < len(seats):
                choice = self._inspect(question.review)
                if choice is not VoteChoice.ABSTAIN:
                    found = self._journal.find(seats, place, _FOUND[choice])
        messages = {finding.value: statements[finding].message() for finding in DisputeFinding}
        signed = [
            (seat, finding, self._keys[seat].bls.sign(messages[finding]))
            for seat, finding in sorted(found.items())
        ]
        signed += [
            (seat, finding.value, keys.bls.sign(messages[finding.value]))
            for seat, (keys, finding) in self._traitors.items()
        ]
        return StatementReply(
            seats=(*seats, *self._traitors),
            signed=tuple(signed),
            refused=None if found else "these seats cannot tell whether the output is right",
        )

    # Batches

    def _open(self, order: BatchOrder) -> StatementReply:
        self._require_order(order)
        statement = order.statement
        scope = tagged_hash(
            "daifi/batch-scope/1",
            {
                "ledger_id": statement.ledger_id,
                "epoch": statement.epoch,
                "operator": statement.operator,
            },
        )
        message = batch_beacon_message(statement)
        seats = [seat for seat, keys in self._keys.items() if keys.share is not None]
        able = self._journal.open_batch(seats, keccak256(message), scope)
        shares = [
            (seat, share.sign(message))
            for seat in able
            if (share := self._keys[seat].share) is not None
        ]
        refused = f"{MAX_UNSIGNED} batches of this operator were opened and not signed this epoch"
        return StatementReply(
            shares=tuple(shares), refused=None if len(able) == len(seats) else refused
        )

    def _check(self, sample: BatchSample) -> StatementReply:
        self._require_order(sample.order)
        statement = sample.order.statement
        message = batch_beacon_message(statement)
        digest, seats = keccak256(message), tuple(self._keys)
        group_key = self._committee.group_key
        if group_key is None or not verify_bls(group_key, message, sample.beacon):
            raise CommitteeError("the draw is not this committee's signature over the batch")
        with self._busy:
            states = self._journal.batch_states(seats, digest)
            fault = None
            if "opened" in states.values():
                fault, known = self._fault(sample)
                if known:
                    state = "signed" if fault is None else "refused"
                    states = self._journal.end_batch(seats, digest, state)
        signed = [
            (seat, "", self._keys[seat].bls.sign(statement.message()))
            for seat, state in sorted(states.items())
            if state == "signed"
        ]
        refused = fault or (None if signed else "these seats did not draw this batch's sample")
        if "refused" in states.values() and fault is None:
            refused = "these seats found a wrong leaf in this batch before"
        return StatementReply(signed=tuple(signed), refused=refused)

    def _require_order(self, order: BatchOrder) -> None:
        statement = order.statement
        if statement.epoch != self._committee.epoch:
            raise CommitteeError(
                f"the batch is for epoch {statement.epoch}; the committee's is "
                f"{self._committee.epoch}"
            )
        if not 0 < statement.count <= MAX_BATCH_LEAVES:
            raise CommitteeError(f"a batch has 1 to {MAX_BATCH_LEAVES} leaves")
        if not order.signed():
            raise CommitteeError("the batch's operator did not sign this order")

    def _fault(self, sample: BatchSample) -> tuple[str | None, bool]:
        """What is wrong with a sample, and whether the batch itself is to blame for it: what was
        shown wrongly can be shown again."""
        statement = sample.order.statement
        wanted = sample_leaves(sample.beacon, statement.count)
        if [leaf.proof.index for leaf in sample.leaves] != list(wanted):
            return "these are not the leaves that were drawn", False
        for leaf in sample.leaves:
            if not leaf.proof.verify(statement.root, statement.count):
                return f"the proof does not show leaf {leaf.proof.index} of this batch", False
            review = leaf.review
            if review.ledger_id != statement.ledger_id:
                return f"leaf {leaf.proof.index} was executed for another ledger", False
            if fault := _review_fault(review, self._committee):
                return f"leaf {leaf.proof.index}: {fault}", False
            if fault := _leaf_fault(Leaf.decode(leaf.proof.leaf), review):
                return f"leaf {leaf.proof.index}: {fault}", False
        for leaf in sample.leaves:
            choice = self._inspect(leaf.review)
            if choice is VoteChoice.ABSTAIN:
                return f"leaf {leaf.proof.index} cannot be checked here", False
            if choice is VoteChoice.REJECT:
                return f"leaf {leaf.proof.index} is wrong", True
        return None, True


_FOUND: Final = {
    VoteChoice.ACCEPT: DisputeFinding.DISMISSED.value,
    VoteChoice.REJECT: DisputeFinding.UPHELD.value,
}


def _review_fault(review: ReviewRequest, committee: Committee) -> str | None:
    """What is wrong with a request, through no fault of the node's: what the requester sends beside
    the node's signed proof must not make the node look wrong."""
    spec, result = review.spec, review.result
    proof = result.proof
    statement = proof.statement
    if review.committee.digest != committee.digest:
        return "the review is for another committee"
    if review.input.cid != spec.input_cid:
        return "the input is not the one the spec names"
    if statement.task_id != spec.task_id:
        return "the proof was made for another task"
    if result.output.cid != statement.output_cid:
        return "the output is not the one the node signed"
    try:
        signer = recover_address(proof.header.digest(), proof.signature)
    except KeyMaterialError:
        signer = ""
    return None if signer == proof.node else "the node did not sign this proof"


def _leaf_fault(leaf: Leaf, review: ReviewRequest) -> str | None:
    """Where a leaf says something else than the execution that is shown for it."""
    spec, proof = review.spec, review.result.proof
    for name, claimed, shown in (
        ("task", leaf.task_id, spec.task_id),
        ("node", leaf.node, proof.node),
        ("model", leaf.model, spec.model.digest),
        ("output", leaf.output, cid_sha256(proof.statement.output_cid)[1]),
        ("work", leaf.flops, proof.statement.usage.flops),
    ):
        if claimed != shown:
            return f"its {name} is not that of the execution"
    if leaf.amount_wei > spec.max_price_wei:
        return "it pays more than its task's highest price"
    return None
