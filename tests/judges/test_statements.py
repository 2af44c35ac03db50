"""Disputes and batches: what seats sign, that they sign it once, and what they refuse."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daifi_flows.cnft import Content, ReviewRequest, VoteChoice
from daifi_flows.dispute import DisputeFinding
from daifi_flows.encoding import cid_sha256, keccak256
from daifi_flows.errors import CommitteeError
from daifi_flows.judges import HostLost
from daifi_flows.judges._statement_client import StatementClient
from daifi_flows.judges._statements import (
    SAMPLE_LEAVES,
    BatchOrder,
    BatchSample,
    DisputeQuestion,
    OpenBatch,
    Question,
    SampledLeaf,
    StatementDesk,
    StatementReply,
    batch_beacon_message,
    sample_leaves,
)
from daifi_flows.judges._statements_journal import MAX_UNSIGNED, StatementJournal
from daifi_flows.keys import Account, verify_bls, verify_bls_aggregate
from daifi_flows.proofs import Claim, Outcome, verify_proof
from daifi_flows.rollup import Batch, BatchStatement, Leaf
from daifi_flows.threshold import combine_shares

UPHELD, DISMISSED, UNDECIDED = DisputeFinding
OPERATOR = Account.from_seed(b"operator")
ZERO = "0x" + "0" * 40


def verifier(reference: Callable[[], Any], log: list[ReviewRequest] | None = None) -> Any:
    """Inspects as an office does: the proof scheme over a re-execution."""
    choices = {Outcome.VALID: VoteChoice.ACCEPT, Outcome.INVALID: VoteChoice.REJECT}

    def inspect(request: ReviewRequest) -> VoteChoice:
        if log is not None:
            log.append(request)
        claim = Claim(request.spec, request.input, request.result.output, request.materials)
        verdict = verify_proof(claim, request.result.proof, reference(), Path())
        return choices.get(verdict.outcome, VoteChoice.ABSTAIN)

    return inspect


class Host:
    """A transport to a desk in this process that can lose calls and restart."""

    def __init__(self, make: Callable[[], StatementDesk]) -> None:
        self.make, self.desk = make, make()
        self.lose = 0
        self.refuses = False

    async def statement(self, question: Question) -> StatementReply:
        if self.refuses:
            raise CommitteeError("no")
        if self.lose:
            self.lose -= 1
            self.desk = self.make()
            raise HostLost("restarting")
        return await asyncio.to_thread(self.desk.answer, question)


@pytest.fixture
def desk_of(seats: Any, tmp_path: Path, doubling: Any) -> Iterator[Any]:
    journals: list[StatementJournal] = []

    def make(
        indices: Sequence[int] = range(21), *, inspect: Any = None, folder: str = "work",
        traitors: dict[int, DisputeFinding] | None = None,
    ) -> StatementDesk:  # fmt: skip
        journal = StatementJournal(tmp_path / folder / "statements.sqlite")
        journals.append(journal)
        bad = traitors or {}
        return StatementDesk(
            seats.committee,
            {i: seats.keys(i) for i in indices if i not in bad},
            journal,
            inspect or verifier(doubling()),
            {i: (seats.keys(i), finding) for i, finding in bad.items() if i in indices},
        )

    yield make
    for journal in journals:
        journal.close()


@pytest.fixture
def client_of(desk_of: Any, seats: Any) -> Any:
    def make(count: int = 3, **options: Any) -> StatementClient:
        hosts = [
            Host(lambda n=n: desk_of(range(n * 21 // count, (n + 1) * 21 // count), **options))
            for n in range(count)
        ]
        return StatementClient(hosts, seats.committee, timeout_s=20)

    return make


def sound(seats: Any, message: bytes, signers: int, signature: bytes) -> bool:
    """Whether a quorum of the committee signed ``message``: the ledger's own check."""
    signing = seats.committee.signers(signers)
    publics = [seat.public for seat in signing]
    return len(signing) >= 14 and verify_bls_aggregate(publics, message, signature)


# Disputes


@pytest.mark.parametrize(("output", "finding"), [(42, DISMISSED), (43, UPHELD)])
async def test_all_seats_review_a_disputed_output_again(
    client_of: Any, seats: Any, request_of: Any, output: int, finding: DisputeFinding
) -> None:
    request = request_of(output)
    attestation = await client_of().dispute(request, 2)
    assert attestation.finding is finding and attestation.epoch == seats.committee.epoch
    statement = DisputeQuestion(request, 2).statement(finding)
    assert statement.number == 2 and statement.node == request.result.proof.node
    assert sound(seats, statement.message(), attestation.signers, attestation.signature)
    other = DisputeQuestion(request, 1).statement(finding)
    assert not sound(seats, other.message(), attestation.signers, attestation.signature)


async def test_seats_that_cannot_tell_sign_nothing_and_can_be_asked_again(
    client_of: Any, request_of: Any, doubling: Any
) -> None:
    """Else who leaves out the materials decides disputes before they are opened."""
    unable = client_of(inspect=verifier(doubling(missing=True)))
    assert await unable.dispute(request_of(43)) is None
    assert (await client_of().dispute(request_of(43))).finding is UPHELD
    assert (await unable.dispute(request_of(43))).finding is UPHELD  # as journaled


def test_a_finding_is_journaled_and_never_changes(
    desk_of: Any, request_of: Any, doubling: Any
) -> None:
    question = DisputeQuestion(request_of(42), 0)
    first = desk_of().answer(question)
    log: list[ReviewRequest] = []
    again = desk_of(inspect=verifier(doubling(answer=7), log)).answer(question)
    assert again == first and not log  # another process, another opinion: the old words
    other = desk_of(inspect=verifier(doubling(answer=7), log)).answer(replace(question, number=1))
    assert {finding for _, finding, _ in other.signed} == {UPHELD.value} and len(log) == 1


async def test_thirteen_against_eight_find_nothing(
    client_of: Any, desk_of: Any, seats: Any, request_of: Any, doubling: Any
) -> None:
    right = Host(lambda: desk_of(range(13)))
    wrong = Host(lambda: desk_of(range(13, 21), inspect=verifier(doubling(answer=7))))
    assert await StatementClient([right, wrong], seats.committee).dispute(request_of(42)) is None
    more = Host(lambda: desk_of(range(14), folder="b"))
    less = Host(lambda: desk_of(range(14, 21), folder="b", inspect=verifier(doubling(answer=7))))
    found = await StatementClient([more, less], seats.committee).dispute(request_of(42))
    assert found is not None and found.finding is DISMISSED


@pytest.mark.parametrize("lie", list(DisputeFinding))
async def test_six_liars_change_no_finding(
    client_of: Any, seats: Any, request_of: Any, lie: DisputeFinding
) -> None:
    client = client_of(traitors=dict.fromkeys(range(0, 18, 3), lie))
    assert (await client.dispute(request_of(42))).finding is DISMISSED
    assert (await client.dispute(request_of(43, nonce=1))).finding is UPHELD


async def test_rubbish_partials_are_left_out(desk_of: Any, seats: Any, request_of: Any) -> None:
    class Liar(Host):
        async def statement(self, question: Question) -> StatementReply:
            return StatementReply(
                signed=(
                    *((seat, DISMISSED.value, bytes([seat]) * 96) for seat in (14, 15)),
                    (16, DISMISSED.value, b"short"),
                    (17, "nonsense", bytes(96)),
                    (-1, DISMISSED.value, bytes(96)),
                    (99, DISMISSED.value, bytes(96)),
                )
            )

    hosts = [Liar(lambda: desk_of([20])), Host(lambda: desk_of(range(14)))]
    found = await StatementClient(hosts, seats.committee).dispute(request_of(42))
    assert found is not None and found.signers == (1 << 14) - 1


async def test_a_host_that_restarts_is_asked_again_and_too_few_are_an_error(
    client_of: Any, request_of: Any
) -> None:
    client = client_of()
    client.hosts[0].lose = 2
    client.hosts[1].lose = 1
    assert (await client.dispute(request_of(42))).finding is DISMISSED
    for host in client.hosts[1:]:
        host.refuses = True
    with pytest.raises(CommitteeError, match=r"7 seats answered .* 14"):
        await client.dispute(request_of(42), 1)


def test_what_the_requester_gets_wrong_accuses_nobody(
    desk_of: Any, request_of: Any, seats_of: Any
) -> None:
    """Else whoever sends a proof with another output, or another input, has its node slashed."""
    desk, request = desk_of(), request_of(42)
    result, proof = request.result, request.result.proof
    elsewhere = Account.from_seed(b"elsewhere").address
    for wrong in (
        replace(request, input=Content.json_value({"args": {"n": 22}}, bytes(32))),
        replace(request, result=result.model_copy(
            update={"output": Content.json_value(43, bytes(32))}
        )),
        replace(request, result=result.model_copy(
            update={"proof": proof.model_copy(update={"node": elsewhere})}
        )),
        replace(request, spec=request_of(42, nonce=9).spec),
        replace(request, committee=seats_of(4).committee),
    ):  # fmt: skip
        with pytest.raises(CommitteeError):
            desk.answer(DisputeQuestion(wrong, 0))
    for number in (-1, 3, 2**63):
        with pytest.raises(CommitteeError, match="at most 3 times"):
            desk.answer(DisputeQuestion(request, number))
    with pytest.raises(CommitteeError):
        desk.answer("rubbish")
    assert desk.answer(DisputeQuestion(request, 0)).signed[0][1] == DISMISSED.value


# Batches


class Work:
    """Executions and the batch over them; the leaves in ``wrong`` have a wrong output."""

    def __init__(self, request_of: Any, count: int = 3, wrong: Sequence[int] = ()) -> None:
        self.requests = [request_of(43 if n in wrong else 42, nonce=n) for n in range(count)]
        self.batch = Batch.of(self.leaf(request) for request in self.requests)
        self.by_task = {request.spec.task_id: request for request in self.requests}

    @staticmethod
    def leaf(request: ReviewRequest) -> Leaf:
        proof = request.result.proof
        return Leaf(
            task_id=request.spec.task_id,
            node=proof.node,
            owner=ZERO,
            model=request.spec.model.digest,
            output=cid_sha256(proof.statement.output_cid)[1],
            amount_wei=1,
            flops=proof.statement.usage.flops,
        )

    def statement(self, **changes: Any) -> BatchStatement:
        values = {
            "ledger_id": self.requests[0].ledger_id,
            "epoch": 0,
            "operator": OPERATOR.address,
            "root": self.batch.root,
            "count": self.batch.count,
            "total_wei": self.batch.total_wei,
            "submit_by_ms": 1,
        }
        return BatchStatement.model_validate(values | changes)

    async def fetch(self, leaf: Leaf) -> ReviewRequest:
        return self.by_task[leaf.task_id]

    def sample(self, order: BatchOrder, beacon: bytes) -> BatchSample:
        return BatchSample(
            order,
            beacon,
            tuple(
                SampledLeaf(self.batch.proof(i), self.requests[i])
                for i in sample_leaves(beacon, self.batch.count)
            ),
        )


async def test_a_right_batch_is_signed_by_a_quorum(
    client_of: Any, seats: Any, request_of: Any
) -> None:
    work = Work(request_of)
    statement = work.statement()
    found = await client_of().batch(statement, OPERATOR, work.batch, work.fetch)
    assert found.epoch == 0
    assert sound(seats, statement.message(), found.signers, found.signature)


async def test_only_drawn_leaves_are_executed_again(
    client_of: Any, request_of: Any, doubling: Any
) -> None:
    log: list[ReviewRequest] = []
    work = Work(request_of, 3)
    many = [work.leaf(r)._replace(task_id=keccak256(bytes([i, j])))
            for r in work.requests[:1] for i in range(2) for j in range(100)]  # fmt: skip
    batch, fetched = Batch.of(many), list[bytes]()

    async def fetch(leaf: Leaf) -> ReviewRequest:
        fetched.append(leaf.task_id)
        return work.requests[0]

    statement = work.statement(root=batch.root, count=batch.count, total_wei=batch.total_wei)
    client = client_of(1, inspect=verifier(doubling(), log))
    with pytest.raises(CommitteeError, match="its task is not that of the execution"):
        await client.batch(statement, OPERATOR, batch, fetch)
    assert len(set(fetched)) == SAMPLE_LEAVES and not log


@pytest.mark.parametrize("wrong", [[0], [2], [0, 1, 2]])
async def test_a_wrong_leaf_that_is_drawn_spoils_the_batch_for_good(
    client_of: Any, request_of: Any, wrong: list[int]
) -> None:
    work = Work(request_of, wrong=wrong)
    client = client_of()
    with pytest.raises(CommitteeError, match="is wrong"):
        await client.batch(work.statement(), OPERATOR, work.batch, work.fetch)
    with pytest.raises(CommitteeError, match="wrong leaf in this batch before"):
        await client.batch(work.statement(), OPERATOR, work.batch, work.fetch)


async def test_a_leaf_that_cannot_be_checked_can_be_checked_later(
    desk_of: Any, seats: Any, request_of: Any, doubling: Any
) -> None:
    work = Work(request_of)

    def client(reference: Any) -> StatementClient:
        host = Host(lambda: desk_of(inspect=verifier(reference)))
        return StatementClient([host], seats.committee)

    with pytest.raises(CommitteeError, match="cannot be checked here"):
        await client(doubling(missing=True)).batch(
            work.statement(), OPERATOR, work.batch, work.fetch
        )
    assert await client(doubling()).batch(work.statement(), OPERATOR, work.batch, work.fetch)


def opened(desk: StatementDesk, order: BatchOrder) -> dict[int, bytes]:
    return dict(desk.answer(OpenBatch(order)).shares)


def test_the_draw_is_one_signature_whoever_shares_it(
    desk_of: Any, seats: Any, request_of: Any
) -> None:
    order = BatchOrder.sign(Work(request_of).statement(), OPERATOR)
    shares = opened(desk_of(), order)
    message = batch_beacon_message(order.statement)
    one = combine_shares({i: shares[i] for i in range(14)})
    assert one == combine_shares({i: shares[i] for i in range(7, 21)})
    assert verify_bls(seats.committee.group_key, message, one)
    assert opened(desk_of(), order) == shares


def test_an_operator_that_dislikes_its_draws_runs_out_of_tries(
    desk_of: Any, request_of: Any
) -> None:
    work, desk = Work(request_of), desk_of()
    orders = [
        BatchOrder.sign(work.statement(submit_by_ms=n), OPERATOR) for n in range(MAX_UNSIGNED + 2)
    ]
    for order in orders[:MAX_UNSIGNED]:
        assert len(opened(desk, order)) == 21
    assert not opened(desk, orders[MAX_UNSIGNED]) and not opened(desk_of(), orders[-1])
    other = Account.from_seed(b"another operator")
    theirs = BatchOrder.sign(work.statement(operator=other.address), other)
    assert len(opened(desk, theirs)) == 21
    # What it opened it can still have reviewed, and once it is signed there is room again.
    beacon = combine_shares(dict(list(opened(desk, orders[0]).items())[:14]))
    assert len(desk.answer(work.sample(orders[0], beacon)).signed) == 21
    assert len(opened(desk, orders[MAX_UNSIGNED])) == 21


def test_bad_orders_and_samples_are_refused(desk_of: Any, request_of: Any, seats: Any) -> None:
    work, desk = Work(request_of), desk_of()
    statement = work.statement()
    order = BatchOrder.sign(statement, OPERATOR)
    stranger = BatchOrder(statement=statement, signature=NODE_SIGNED)
    for bad in (
        stranger,
        BatchOrder.sign(work.statement(epoch=1), OPERATOR),
        BatchOrder.sign(work.statement(count=0), OPERATOR),
        BatchOrder.sign(work.statement(count=1 << 17), OPERATOR),
    ):
        with pytest.raises(CommitteeError):
            desk.answer(OpenBatch(bad))
    shares = opened(desk, order)
    beacon = combine_shares({i: shares[i] for i in range(14)})
    good = work.sample(order, beacon)
    with pytest.raises(CommitteeError, match="draw"):
        desk.answer(replace(good, beacon=shares[0]))
    fresh = BatchOrder.sign(work.statement(submit_by_ms=5), OPERATOR)
    with pytest.raises(CommitteeError, match="draw"):
        desk.answer(work.sample(fresh, beacon))
    for bad in (
        replace(good, leaves=good.leaves[1:]),
        replace(good, leaves=good.leaves[::-1]),
        replace(good, leaves=(replace(good.leaves[0], review=work.requests[1]), *good.leaves[1:])),
        replace(good, leaves=(replace(
            good.leaves[0], proof=good.leaves[0].proof.model_copy(update={"path": ()})
        ), *good.leaves[1:])),
        replace(good, leaves=(replace(
            good.leaves[0], review=replace(good.leaves[0].review, ledger_id=bytes(32))
        ), *good.leaves[1:])),
    ):  # fmt: skip
        reply = desk.answer(bad)
        assert not reply.signed and reply.refused
    assert len(desk.answer(good).signed) == 21  # what was shown wrongly can be shown again


NODE_SIGNED = Account.from_seed(b"node").sign(bytes(32))


def test_seats_that_did_not_draw_do_not_sign(desk_of: Any, request_of: Any) -> None:
    work, desk = Work(request_of), desk_of(range(14))
    order = BatchOrder.sign(work.statement(), OPERATOR)
    beacon = combine_shares(opened(desk, order))
    late = desk_of(range(14, 21))
    reply = late.answer(work.sample(order, beacon))
    assert not reply.signed and "did not draw" in (reply.refused or "")


@given(beacon=st.binary(min_size=96, max_size=96), count=st.integers(1, 1 << 16))
def test_a_sample_has_its_size_and_no_leaf_twice(beacon: bytes, count: int) -> None:
    drawn = sample_leaves(beacon, count)
    assert len(set(drawn)) == len(drawn) == min(count, SAMPLE_LEAVES)
    assert all(0 <= index < count for index in drawn) and list(drawn) == sorted(drawn)


def test_every_leaf_is_drawn_about_equally_often() -> None:
    count = [0] * 50
    for n in range(1_000):
        for index in sample_leaves(n.to_bytes(96, "big"), 50, 10):
            count[index] += 1
    assert sum(count) == 10_000 and min(count) > 130 and max(count) < 270
