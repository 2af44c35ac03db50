"""Audits of waived work: drawn by a later block, reviewed by all seats, disputed when wrong."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "ledger"))

from ledger_kit import (
    BUILDER,
    BUYER,
    COMMITTEE,
    DAI,
    DEALING,
    NODE,
    OTHER,
    SEAT_ACCOUNTS,
    SEAT_KEYS,
    STRANGER,
    T0,
    SeatsHere,
    attest,
    info_of,
    make_genesis,
)

from daifi_flows._auditing import Audit, Auditor, AuditOutcome, SettledWork
from daifi_flows.cnft import (
    Basis,
    Content,
    Execution,
    Materials,
    ModelFile,
    ModelManifest,
    ModelRef,
    NodeResult,
    Review,
    ReviewRequest,
    TaskSpec,
    Usage,
    VoteChoice,
    manifest_digest,
    model_digest,
)
from daifi_flows.dispute import DisputeFinding
from daifi_flows.encoding import keccak256
from daifi_flows.errors import CommitteeError, InsufficientFunds
from daifi_flows.judges import SeatKeys
from daifi_flows.judges._canary import Known, agrees, can_be_repeated, make_canary, pick
from daifi_flows.judges._statement_client import StatementClient
from daifi_flows.judges._statements import Question, StatementDesk, StatementReply
from daifi_flows.judges._statements_journal import StatementJournal
from daifi_flows.keys import Account
from daifi_flows.ledger import LedgerClient, LedgerService, Params, TaskState
from daifi_flows.ledger._disputes import DisputeRecord, dispute_key
from daifi_flows.ledger._params import FeeParams
from daifi_flows.ledger._tx.disputes import Dispute
from daifi_flows.proofs import Claim, Outcome, make_proof, verify_proof
from daifi_flows.review_rate import ReviewTerms, drawn_for_audit

PRICE = 2 * DAI
STAKE = 100 * DAI
FILES = (ModelFile(path="lib:double", size=1, sha256=bytes(32)),)
MODEL = ModelRef(name="lib:double", digest=model_digest(FILES), engine="function", precision="x")


class Doubling:
    """A verifier's copy of the step that doubles a number."""

    def missing(self, spec: TaskSpec, materials: Materials) -> str | None:
        return None

    def reexecute(self, spec: TaskSpec, input: Content, materials: Materials) -> Content:
        return Content.json_value(input.value() * 2, bytes(32))


def inspect(request: ReviewRequest) -> VoteChoice:
    claim = Claim(request.spec, request.input, request.result.output, request.materials)
    verdict = verify_proof(claim, request.result.proof, Doubling(), Path())
    choices = {Outcome.VALID: VoteChoice.ACCEPT, Outcome.INVALID: VoteChoice.REJECT}
    return choices.get(verdict.outcome, VoteChoice.ABSTAIN)


class Desk:
    """All seats of the ledger's committee, in this process."""

    def __init__(self, folder: Path, seats: Sequence[int] = range(21)) -> None:
        self.journal = StatementJournal(folder / "statements.sqlite")
        keys = {i: SeatKeys(i, SEAT_KEYS[i], SEAT_ACCOUNTS[i], DEALING.secrets[i]) for i in seats}
        self.desk = StatementDesk(COMMITTEE, keys, self.journal, inspect)
        self.asked = 0

    async def statement(self, question: Question) -> StatementReply:
        self.asked += 1
        return await asyncio.to_thread(self.desk.answer, question)


@dataclass
class World:
    """A ledger whose clock the test moves, its seats, and an auditor."""

    service: LedgerService
    ledger: LedgerClient
    desk: Desk
    log: Path
    now: list[int]
    numbers: list[int] = field(default_factory=lambda: [0])

    def auditor(self, account: Account = BUYER, name: str = "log") -> Auditor:
        client = StatementClient([self.desk], COMMITTEE, timeout_s=20)
        return Auditor(self.ledger, client, account, self.log / name, lambda: self.now[0])

    async def work(
        self, output: int = 42, *, basis: Basis = Basis.WAIVED, settle: bool = True
    ) -> SettledWork:
        """A step of NODE's that doubles 21, settled without a review unless told otherwise."""
        self.numbers[0] += 1
        asked = Content.json_value(21, bytes(32))
        spec = TaskSpec(
            kind="function",
            model=MODEL,
            input_cid=asked.cid,
            scheme="digest",
            review=Review(attempts=3),
            max_price_wei=PRICE,
            deadline_ms=self.now[0] + 3_600_000,
            buyer=BUYER.address,
            nonce=self.numbers[0].to_bytes(32, "big"),
        )
        execution = Execution(Content.json_value(output, bytes(32)), Usage(flops=1))
        proof = make_proof(Claim(spec, asked, execution.output), execution, NODE, Path())
        manifest = ModelManifest(
            model=MODEL,
            files=FILES,
            signer=NODE.address,
            signature=NODE.sign(manifest_digest(MODEL, FILES, NODE.address)),
        )
        result = NodeResult(output=execution.output, proof=proof, manifest=manifest)
        await self.ledger.open_escrow(spec, BUYER)
        await self.ledger.assign(spec.task_id, NODE.address, PRICE, BUYER)
        await self.ledger.commit(spec.task_id, proof.header, proof.cid, BUYER)
        if settle:
            attestation = attest(
                spec,
                ledger_id=self.ledger.ledger_id,
                output_cid=execution.output.cid,
                proof_cid=proof.cid,
                basis=basis,
                confidence_ppm=0 if basis is Basis.WAIVED else 995_000,
            )
            await self.ledger.settle(attestation, keccak256(b"metadata"), BUYER)
        return SettledWork(spec, asked, result, Materials())

    async def tick(self) -> None:
        """One more block."""
        await self.ledger.transfer(STRANGER.address, 1, BUYER)

    async def state(self, work: SettledWork) -> TaskState:
        task = await self.ledger.task(work.spec.task_id)
        assert task is not None
        return task.state


@pytest.fixture
def world_of(tmp_path: Path) -> Callable[..., Any]:
    async def make(audit_ppm: int = 500_000) -> World:
        terms = ReviewTerms(
            probation=0, trust_ppm=0, floor_ppm=500_000, margin_ppm=2_000_000, audit_ppm=audit_ppm
        )
        genesis = make_genesis(params=Params(fees=FeeParams(fee_per_byte_wei=0), review=terms))
        now = [T0 + 1]
        service = LedgerService(
            tmp_path / "ledger.db", genesis, SeatsHere(genesis), clock=lambda: now[0],
            builder=BUILDER,
        )  # fmt: skip
        await service.start()
        ledger = LedgerClient(service, genesis.ledger_id, patience_s=10)
        for node in (NODE, OTHER):
            await ledger.register(info_of(node), node)
            await ledger.stake(STAKE, node)
        return World(service, ledger, Desk(tmp_path), tmp_path, now)

    return make


@pytest.fixture
async def world(world_of: Any) -> AsyncIterator[World]:
    made = await world_of()
    yield made
    await made.service.close(grace_s=0.2)


async def drawn(world: World, work: SettledWork) -> bool:
    """Whether the newest block draws it, by the lottery itself."""
    head, _ = await world.ledger.head()
    return drawn_for_audit(head.beacon, work.spec.task_id, 500_000)


async def drawn_work(world: World, output: int) -> SettledWork:
    """Waived work that the newest block draws."""
    for _ in range(40):
        work = await world.work(output)
        await world.tick()
        if await drawn(world, work):
            return work
    raise AssertionError("never drawn")


async def test_a_wrong_output_is_slashed_and_refunded_though_it_was_paid_unseen(
    world: World,
) -> None:
    work = await drawn_work(world, 43)
    ledger = world.ledger
    before = (await ledger.account(BUYER.address)).balance_wei
    auditor_before = (await ledger.account(OTHER.address)).balance_wei
    audit = await world.auditor(OTHER).audit(work)
    assert audit == Audit(work.spec.task_id, AuditOutcome.WRONG, STAKE // 4)
    node = await ledger.account(NODE.address)
    assert node.stake_wei == STAKE * 3 // 4 and node.rejected == 1
    assert await world.state(work) is TaskState.REVOKED
    task = await ledger.task(work.spec.task_id)
    assert task is not None and (await ledger.account(BUYER.address)).balance_wei == (
        before + task.earned_wei
    )
    # The bond came back, and the reporter's tenth of the slash with it.
    assert (await ledger.account(OTHER.address)).balance_wei == auditor_before + STAKE // 40
    again = await world.auditor(OTHER).audit(work)
    assert again.outcome is AuditOutcome.CLOSED


async def test_right_work_that_is_drawn_costs_nobody_anything(world: World) -> None:
    work = await drawn_work(world, 42)
    before = [(await world.ledger.account(a.address)) for a in (NODE, OTHER, BUYER)]
    assert (await world.auditor(OTHER).audit(work)).outcome is AuditOutcome.RIGHT
    assert [(await world.ledger.account(a.address)) for a in (NODE, OTHER, BUYER)] == before
    assert await world.state(work) is TaskState.SETTLED and world.desk.asked == 1


async def test_each_output_is_drawn_once_and_not_before_a_later_block(world: World) -> None:
    auditor = world.auditor()
    undrawn = None
    for _ in range(40):
        work = await world.work(43)
        assert (await auditor.audit(work)).outcome is AuditOutcome.WAITING
        await world.tick()
        if not await drawn(world, work):
            undrawn = work
            break
    assert undrawn is not None
    assert (await auditor.audit(undrawn)).outcome is AuditOutcome.NOT_DRAWN
    for _ in range(8):  # later blocks would draw it; this auditor has drawn
        await world.tick()
        assert (await auditor.audit(undrawn)).outcome is AuditOutcome.NOT_DRAWN
    assert world.desk.asked == 0
    # A suspicion (a canary that was answered wrongly) does not wait for luck.
    assert (await auditor.audit(undrawn, suspected=True)).outcome is AuditOutcome.WRONG


async def test_an_idle_ledger_gets_a_block_to_draw_by(world: World) -> None:
    works = [await world.work(42) for _ in range(3)]
    height = (await world.ledger.head())[0].height
    found = await world.auditor(OTHER).run(works)
    assert (await world.ledger.head())[0].height == height + 1
    drawn_or_not = {AuditOutcome.RIGHT, AuditOutcome.NOT_DRAWN}
    assert len(found) == 3 and {audit.outcome for audit in found} <= drawn_or_not
    assert len(await world.auditor(OTHER).run(works)) == 3  # remembered: no further block
    assert (await world.ledger.head())[0].height == height + 1


async def test_what_was_reviewed_or_is_too_old_or_not_settled_is_left_alone(world: World) -> None:
    auditor = world.auditor()
    reviewed = await world.work(basis=Basis.REVIEWED)
    open_still = await world.work(settle=False)
    late = await drawn_work(world, 43)
    world.now[0] += 3_600_000
    assert await auditor.run([reviewed, open_still, late]) == ()
    assert world.desk.asked == 0 and await world.state(late) is TaskState.SETTLED


async def test_a_dispute_of_somebody_else_is_answered(world: World) -> None:
    right, wrong = await world.work(42), await world.work(43)
    for work in (right, wrong):
        fields = {
            "task_id": work.spec.task_id,
            "number": 0,
            "bond_wei": PRICE,
            "evidence": bytes(32),
        }
        await world.ledger.submit(Dispute, OTHER, fields)
    found = await world.auditor().run([right, wrong])
    assert [audit.outcome for audit in found] == [AuditOutcome.RIGHT, AuditOutcome.WRONG]
    for work in (right, wrong):
        key = dispute_key(work.spec.task_id)
        assert await world.ledger.record(DisputeRecord, key) is None
    assert await world.state(right) is TaskState.SETTLED
    assert await world.state(wrong) is TaskState.REVOKED


async def test_seats_that_cannot_agree_dispute_nothing(world: World, tmp_path: Path) -> None:
    class Split(Desk):
        async def statement(self, question: Question) -> StatementReply:
            reply = await super().statement(question)
            flipped = [
                (seat, DisputeFinding.UPHELD.value if seat < 10 else finding, signature)
                for seat, finding, signature in reply.signed
            ]
            return StatementReply(seats=reply.seats, signed=tuple(flipped))

    work = await drawn_work(world, 42)
    world.desk = Split(tmp_path / "split")
    assert (await world.auditor().audit(work)).outcome is AuditOutcome.UNDECIDED
    assert await world.state(work) is TaskState.SETTLED


async def test_an_auditor_without_money_for_the_bond_says_so_and_can_try_again(
    world: World,
) -> None:
    work = await drawn_work(world, 43)
    with pytest.raises(InsufficientFunds):
        await world.auditor(STRANGER).audit(work)
    assert await world.auditor(STRANGER).run([work]) == ()
    assert await world.state(work) is TaskState.SETTLED
    assert (await world.auditor(OTHER).audit(work)).outcome is AuditOutcome.WRONG


async def test_a_crash_between_dispute_and_finding_is_made_good(world: World) -> None:
    work = await drawn_work(world, 43)

    class Dies:
        def __init__(self, ledger: LedgerClient) -> None:
            self.ledger = ledger

        def __getattr__(self, name: str) -> Any:
            return getattr(self.ledger, name)

        async def submit(self, kind: Any, account: Account, values: Any) -> Any:
            if kind is not Dispute:
                raise CommitteeError("the auditor died")
            return await self.ledger.submit(kind, account, values)

    client = StatementClient([world.desk], COMMITTEE, timeout_s=20)
    dying: Any = Dies(world.ledger)
    mortal = Auditor(dying, client, BUYER, world.log / "log", lambda: world.now[0])
    with pytest.raises(CommitteeError):
        await mortal.audit(work)
    assert (await world.auditor().audit(work)).outcome is AuditOutcome.WRONG
    assert await world.state(work) is TaskState.REVOKED


async def test_a_damaged_record_is_drawn_again(world: World) -> None:
    work = await drawn_work(world, 42)
    path = world.log / "log" / f"{work.spec.task_id.hex()}.json"
    path.parent.mkdir()
    for damage in ("", "[]", '{"outcome": "nonsense"}'):
        path.write_text(damage)
        assert (await world.auditor().audit(work)).outcome is AuditOutcome.RIGHT


# Canaries


def known_of(work: SettledWork, **changes: Any) -> Known:
    spec = TaskSpec.from_plain(work.spec.plain() | changes)
    return Known(spec, work.input, work.result.output)


async def test_a_canary_differs_from_the_known_task_only_in_what_is_random(world: World) -> None:
    known = known_of(await world.work(settle=False))
    canary = make_canary(known, buyer=OTHER.address, nonce=b"n" * 32, salt=b"s" * 32, deadline_ms=5)
    assert canary.spec.task_id != known.spec.task_id
    assert canary.input.data == known.input.data and canary.input.cid == canary.spec.input_cid
    changed = {"input_cid", "buyer", "nonce", "deadline_ms"}
    mine, theirs = canary.spec.plain(), known.spec.plain()
    assert {name for name in theirs if mine[name] != theirs[name]} == changed
    assert agrees(canary, Content.json_value(42)) and not agrees(canary, Content.json_value(43))
    assert not agrees(canary, Content.text("42"))


async def test_what_would_give_a_canary_away_is_refused(world: World) -> None:
    known = known_of(await world.work(settle=False))
    fresh: dict[str, Any] = {
        "buyer": OTHER.address, "nonce": b"n" * 32, "salt": b"s" * 32, "deadline_ms": 5,
    }  # fmt: skip
    for bad in (
        {"buyer": known.spec.buyer},
        {"nonce": known.spec.nonce},
        {"salt": known.input.salt},
    ):
        with pytest.raises(CommitteeError):
            make_canary(known, **fresh | bad)
    always = Review(attempts=3, always=1).plain()
    for spoiled in (known_of_parents(known), Known(
        TaskSpec.from_plain(known.spec.plain() | {"review": always}), known.input, known.output
    )):  # fmt: skip
        assert not can_be_repeated(spoiled.spec)
        with pytest.raises(CommitteeError):
            make_canary(spoiled, **fresh)
    assert pick([known_of_parents(known)], bytes(32), 0) is None
    assert pick([known_of_parents(known), known], bytes(32), 0) is known


def known_of_parents(known: Known) -> Known:
    spec = TaskSpec.from_plain(known.spec.plain() | {"parents": [bytes(32)]})
    return Known(spec, known.input, known.output)
