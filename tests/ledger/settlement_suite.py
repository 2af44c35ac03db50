"""What every settlement does, whichever ledger is behind it: one suite, run for each.

A back end is a running :class:`~daifi_flows.ledger.Settlement` whose buyer holds 1,000 DAi and
whose two nodes hold 200 each, with a committee whose keys the tests have.
"""

from __future__ import annotations

import asyncio
import itertools
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from ledger_kit import (
    BUYER,
    COMMITTEE,
    DAI,
    NODE,
    OTHER,
    PROOF_CID,
    STRANGER,
    attest,
    bound,
    info_of,
    make_header,
    make_spec,
    make_vote,
    opened,
    subject_of,
)

from daifi_flows.cnft import (
    PPM,
    Attestation,
    Decision,
    Receipt,
    TaskSpec,
    VoteChoice,
    token_id_of,
)
from daifi_flows.encoding import cid_of, keccak256
from daifi_flows.errors import InsufficientFunds, TransactionRefused
from daifi_flows.keys import Account
from daifi_flows.ledger import Settlement, TaskState

META = keccak256(b"metadata")
PRICE = 2 * DAI
ABSENT = bytes([7]) * 32


class Backend(ABC):
    """One ledger under test."""

    settlement: Settlement
    _numbers = itertools.count()

    @abstractmethod
    def now_ms(self) -> int:
        """The ledger's own time."""

    @abstractmethod
    async def pass_time(self, ms: int) -> None:
        """Let so much of it pass."""

    def spec(self, lasts_ms: int = 3_600_000, **changes: Any) -> TaskSpec:
        """A task no other test has."""
        deadline_ms = self.now_ms() + lasts_ms
        return make_spec(next(self._numbers), **{"deadline_ms": deadline_ms, **changes})

    def attest(
        self, spec: TaskSpec, decision: Decision = Decision.ACCEPTED, **changes: Any
    ) -> Attestation:
        """The committee's signed finding on this ledger."""
        return attest(spec, decision, ledger_id=self.settlement.ledger_id, **changes)

    async def nodes_join(self) -> None:
        """Both nodes register and stake 50 DAi."""
        for node in (NODE, OTHER):
            await self.settlement.register(info_of(node), node)
            await self.settlement.stake(50 * DAI, node)

    async def committed(self, spec: TaskSpec, node: Account = NODE) -> None:
        """Open, assigned to a node, its proof recorded."""
        await self.settlement.open_escrow(spec, BUYER)
        await self.settlement.assign(spec.task_id, node.address, PRICE, BUYER)
        await self.settlement.commit(spec.task_id, make_header(spec, node), PROOF_CID, node)

    async def settled(self, **changes: Any) -> tuple[TaskSpec, Receipt]:
        """A whole step."""
        spec = self.spec(**changes)
        await self.committed(spec)
        return spec, await self.settlement.settle(self.attest(spec), META, BUYER)

    async def holdings(self, *accounts: Account) -> list[int]:
        """Free and locked money of each."""
        found = [await self.settlement.account(each.address) for each in accounts]
        return [each.balance_wei + each.locked_wei for each in found]


async def refused(call: Awaitable[Any]) -> str:
    """The code a call is refused with."""
    with pytest.raises(TransactionRefused) as error:
        await call
    return str(error.value.details["code"])


async def test_a_step_pays_everyone_and_mints_one_token(backend: Backend) -> None:
    ledger = backend.settlement
    await backend.nodes_join()
    buyer, node = await backend.holdings(BUYER, NODE)
    before = await ledger.supply()
    spec, receipt = await backend.settled()
    assert receipt.leaf.token_id == token_id_of(spec.task_id)
    fees = (await ledger.params()).fees
    shares = {payment.reason: 0 for payment in receipt.leaf.payments}
    for payment in receipt.leaf.payments:
        shares[payment.reason] += payment.amount_wei
    assert sum(shares.values()) == spec.max_price_wei
    assert shares["refund"] == spec.max_price_wei - PRICE
    assert shares["treasury"] == PRICE * fees.treasury_ppm // PPM
    after = await ledger.supply()
    assert after.conserved
    assert after.issued_wei - after.burned_wei == before.issued_wei - before.burned_wei
    assert after.escrows_wei == before.escrows_wei
    paid = await backend.holdings(BUYER, NODE)
    assert paid == [buyer - PRICE, node + shares["node"]]
    token = await ledger.token(token_id_of(spec.task_id))
    assert token is not None
    assert (token.owner, token.content, token.task_id) == (BUYER.address, META, spec.task_id)
    task = await ledger.task(spec.task_id)
    assert task is not None
    assert (task.state, task.escrow_wei) == (TaskState.SETTLED, 0)
    found = await ledger.attestation_receipt(spec.task_id)
    assert found is not None
    assert found[0] == backend.attest(spec)
    assert found[1] == receipt


async def test_every_call_can_be_repeated(backend: Backend) -> None:
    ledger, spec = backend.settlement, backend.spec()
    await backend.nodes_join()
    task = spec.task_id
    calls: list[Callable[[], Awaitable[Receipt]]] = [
        lambda: ledger.open_escrow(spec, BUYER),
        lambda: ledger.assign(task, NODE.address, PRICE, BUYER),
        lambda: ledger.commit(task, make_header(spec), PROOF_CID, NODE),
        lambda: ledger.settle(backend.attest(spec), META, BUYER),
        lambda: ledger.effect(token_id_of(task), keccak256(b"effect"), BUYER),
    ]
    receipts = [await call() for call in calls]
    held = await backend.holdings(BUYER, NODE, OTHER)
    for call, first in zip(calls, receipts, strict=True):
        assert (await call()).leaf == first.leaf
    assert await backend.holdings(BUYER, NODE, OTHER) == held
    # Another aggregate of the same finding, by other seats, is the same settlement.
    again = await ledger.settle(backend.attest(spec, signers=range(7, 21)), META, BUYER)
    assert again.leaf == receipts[3].leaf
    assert await refused(ledger.settle(backend.attest(spec), ABSENT, BUYER)) == "duplicate"
    assert await refused(ledger.assign(task, OTHER.address, PRICE, BUYER)) == "duplicate"


async def test_callers_that_ask_at_once_pay_once(backend: Backend) -> None:
    ledger, spec = backend.settlement, backend.spec()
    await backend.nodes_join()
    (buyer,) = await backend.holdings(BUYER)
    opened = await asyncio.gather(*(ledger.open_escrow(spec, BUYER) for _ in range(5)))
    assert len({receipt.leaf for receipt in opened}) == 1
    await ledger.assign(spec.task_id, NODE.address, PRICE, BUYER)
    await ledger.commit(spec.task_id, make_header(spec), PROOF_CID, NODE)
    done = await asyncio.gather(
        *(ledger.settle(backend.attest(spec), META, who) for who in (BUYER, NODE, BUYER, NODE))
    )
    assert len({receipt.leaf for receipt in done}) == 1
    assert await backend.holdings(BUYER) == [buyer - PRICE]


async def test_a_rejected_node_is_slashed_and_another_finishes(backend: Backend) -> None:
    ledger, spec = backend.settlement, backend.spec()
    await backend.nodes_join()
    await backend.committed(spec)
    stake = (await ledger.account(NODE.address)).stake_wei
    receipt = await ledger.reject(backend.attest(spec, Decision.REJECTED), OTHER)
    lost = sum(each.amount_wei for each in receipt.leaf.payments if each.reason == "slash")
    after = await ledger.account(NODE.address)
    assert 0 < lost == stake - after.stake_wei <= stake // 2
    assert after.rejected == 1
    task = await ledger.task(spec.task_id)
    assert task is not None
    assert (task.state, task.attempt, task.escrow_wei) == (TaskState.OPEN, 1, spec.max_price_wei)
    call = ledger.assign(spec.task_id, NODE.address, PRICE, BUYER)
    assert await refused(call) == "bad-role"
    await ledger.assign(spec.task_id, OTHER.address, PRICE, BUYER)
    await ledger.commit(spec.task_id, make_header(spec, OTHER), PROOF_CID, OTHER)
    found = backend.attest(spec, attempt=1, node=OTHER.address)
    assert (await ledger.settle(found, META, BUYER)).leaf.node == OTHER.address
    assert (await ledger.supply()).conserved


async def test_what_cannot_be_decided_is_refunded(backend: Backend) -> None:
    ledger, spec = backend.settlement, backend.spec()
    await backend.nodes_join()
    before = await backend.holdings(BUYER, NODE)
    await backend.committed(spec)
    await ledger.unproven(backend.attest(spec, Decision.UNPROVEN), BUYER)
    assert await backend.holdings(BUYER, NODE) == before
    assert (await ledger.account(NODE.address)).rejected == 0
    settled = ledger.settle(backend.attest(spec), META, BUYER)
    assert await refused(settled) == "bad-state"


async def test_a_buyer_gets_out_of_every_state_before_the_answer(backend: Backend) -> None:
    ledger = backend.settlement
    await backend.nodes_join()
    (buyer,) = await backend.holdings(BUYER)
    opened, assigned, late = backend.spec(), backend.spec(), backend.spec(lasts_ms=1_500)
    for spec in (opened, assigned, late):
        await ledger.open_escrow(spec, BUYER)
    assert await refused(ledger.expire(late.task_id, STRANGER)) in ("bad-state", "unfunded")
    await ledger.cancel(opened.task_id, BUYER)
    await ledger.assign(assigned.task_id, NODE.address, PRICE, BUYER)
    await ledger.release(assigned.task_id, BUYER)
    await ledger.assign(assigned.task_id, OTHER.address, PRICE, BUYER)
    await ledger.cancel(assigned.task_id, BUYER)
    await backend.pass_time(1_600)
    await ledger.expire(late.task_id, BUYER)
    assert await backend.holdings(BUYER) == [buyer]
    states = [(await ledger.task(s.task_id)) for s in (opened, assigned, late)]
    assert [each.state if each else None for each in states] == [
        TaskState.CANCELLED,
        TaskState.CANCELLED,
        TaskState.EXPIRED,
    ]
    assert await refused(ledger.cancel(late.task_id, BUYER)) == "bad-state"


async def test_refusals_have_codes_and_change_nothing(backend: Backend) -> None:
    ledger, spec = backend.settlement, backend.spec()
    await backend.nodes_join()
    await backend.committed(spec)
    held = await backend.holdings(BUYER, NODE, OTHER)
    unknown, rich = backend.spec(), backend.spec(max_price_wei=5_000 * DAI)
    past = backend.spec(lasts_ms=-1)
    task = spec.task_id

    def attested(**changes: Any) -> Attestation:
        return backend.attest(spec, **changes)

    forged = attested().model_copy(update={"confidence_ppm": 999_999})
    for call, codes in (
        (lambda: ledger.assign(unknown.task_id, NODE.address, PRICE, BUYER), {"unknown"}),
        (lambda: ledger.open_escrow(past, BUYER), {"expired"}),
        (lambda: ledger.cancel(task, BUYER), {"bad-state"}),
        (lambda: ledger.commit(task, make_header(spec, OTHER), PROOF_CID, OTHER), {"bad-role"}),
        (lambda: ledger.settle(forged, META, BUYER), {"bad-signature"}),
        (lambda: ledger.settle(attested(signers=range(13)), META, BUYER), {"bad-signature"}),
        (lambda: ledger.settle(attested(epoch=2), META, BUYER), {"bad-field"}),
        (lambda: ledger.settle(attested(output_cid=cid_of(b"x")), META, BUYER), {"bad-field"}),
        (lambda: ledger.settle(attest(spec, ledger_id=ABSENT), META, BUYER), {"bad-field"}),
        (lambda: ledger.reject(attested(), OTHER), {"bad-field"}),
        (lambda: ledger.transfer(OTHER.address, 0, BUYER), {"bad-field"}),
        (lambda: ledger.effect(ABSENT, META, BUYER), {"unknown"}),
    ):
        assert await refused(call()) in codes
    for poor in (
        lambda: ledger.open_escrow(rich, BUYER),
        lambda: ledger.transfer(OTHER.address, 5_000 * DAI, BUYER),
        lambda: ledger.stake(5_000 * DAI, NODE),
    ):
        with pytest.raises(InsufficientFunds):
            await poor()
    after = await backend.holdings(BUYER, NODE, OTHER)
    assert after == held, (after, held)
    assert (await ledger.supply()).conserved


async def test_a_transfer_counts_once_a_request(backend: Backend) -> None:
    ledger, (before,) = backend.settlement, await backend.holdings(STRANGER)
    for _ in range(2):
        await ledger.transfer(STRANGER.address, 3, BUYER)
    request = keccak256(b"a client's own")
    sent = [await ledger.transfer(STRANGER.address, 10, BUYER, request=request) for _ in range(3)]
    assert len({receipt.leaf for receipt in sent}) == 1
    assert await backend.holdings(STRANGER) == [before + 16]
    other = ledger.transfer(STRANGER.address, 11, BUYER, request=request)
    assert await refused(other) == "duplicate"


async def test_parents_earn_royalties_and_tokens_move(backend: Backend) -> None:
    ledger = backend.settlement
    await backend.nodes_join()
    first, _ = await backend.settled()
    parent = token_id_of(first.task_id)
    gift = await ledger.transfer_token(parent, NODE.address, BUYER)
    assert gift.leaf.token_id == parent
    assert await refused(ledger.transfer_token(parent, OTHER.address, BUYER)) == "bad-role"
    _, receipt = await backend.settled(parents=(parent,))
    royalties = [each for each in receipt.leaf.payments if each.reason == "royalty"]
    fees = (await ledger.params()).fees
    assert [(each.to, each.amount_wei) for each in royalties] == [
        (NODE.address, PRICE * fees.royalty_ppm // PPM)
    ]
    orphan = backend.spec(parents=(ABSENT,))
    assert await refused(ledger.open_escrow(orphan, BUYER)) == "unknown"


async def test_an_answer_is_used_again_without_computing(backend: Backend) -> None:
    ledger = backend.settlement
    await backend.nodes_join()
    spec, receipt = await backend.settled()
    token = token_id_of(spec.task_id)
    again = spec.model_copy(update={"buyer": OTHER.address, "nonce": ABSENT})
    reused = await ledger.flash_attest(token, again, OTHER)
    assert reused.leaf.of == token
    assert reused.leaf.attestation == receipt.leaf.attestation
    assert (await ledger.flash_attest(token, again, OTHER)).leaf == reused.leaf
    assert reused.leaf.token_id is not None
    reference = await ledger.token(reused.leaf.token_id)
    assert reference is not None
    assert reference.owner == OTHER.address
    warmer = again.model_copy(update={"input_cid": cid_of(b"another input"), "nonce": META})
    assert await refused(ledger.flash_attest(token, warmer, OTHER)) == "bad-field"


async def test_false_votes_are_shown_once(backend: Backend) -> None:
    """Each call can be repeated by who made it; the offence cannot be shown again."""
    ledger = backend.settlement
    await backend.nodes_join()
    spec, _ = await backend.settled()
    subject = subject_of(spec, ledger_id=ledger.ledger_id)
    accept, reject = (make_vote(subject, 3, choice) for choice in VoteChoice if choice != "abstain")
    other = make_vote(subject, 5)
    double = subject, bound(accept), bound(reject)
    copied = subject, bound(other, 4), opened(other)
    false = subject, bound(reject), opened(reject), backend.attest(spec)
    assert await refused(ledger.report_false_vote(*false, OTHER)) == "bad-state"
    wrong = backend.attest(spec, Decision.REJECTED)
    lazy = subject, bound(accept), opened(accept), wrong
    assert await refused(ledger.report_false_vote(*lazy, OTHER)) == "bad-field"  # of three parts
    for report, shown, seat in (
        (ledger.report_double_vote, double, 3),
        (ledger.report_copied_vote, copied, 4),
    ):
        receipt = await report(*shown, NODE)
        assert receipt.leaf.task_id == spec.task_id
        assert receipt.leaf.node == COMMITTEE.seats[seat].account
        for again in (NODE, OTHER):  # who shows it later learns who was first
            assert (await report(*shown, again)).leaf == receipt.leaf
    third = bound(make_vote(subject, 3, VoteChoice.ABSTAIN))
    assert await refused(ledger.report_double_vote(*double[:2], third, OTHER)) == "duplicate"


async def test_any_receipt_is_provable_against_a_later_head(backend: Backend) -> None:
    ledger = backend.settlement
    await backend.nodes_join()
    _, receipt = await backend.settled()
    for amount_wei in range(1, 6):
        await ledger.transfer(OTHER.address, amount_wei, BUYER)
    proof = await ledger.prove(receipt.leaf.tx)
    assert proof.leaf == receipt.leaf
    assert proof.header.height > receipt.header.height
    proof.verify(COMMITTEE)
    head, certificate = await ledger.head()
    assert certificate is not None
    assert head.history_size >= proof.header.history_size > proof.index
    assert await refused(ledger.prove(ABSENT)) == "unknown"


async def test_what_is_not_there_reads_as_nothing(backend: Backend) -> None:
    ledger = backend.settlement
    assert await ledger.task(ABSENT) is None
    assert await ledger.token(ABSENT) is None
    assert await ledger.attestation_receipt(ABSENT) is None
    nobody = await ledger.account(Account.create().address)
    assert (nobody.balance_wei, nobody.nonce, nobody.stake_wei) == (0, 0, 0)
    assert await ledger.committee() == COMMITTEE
    await backend.nodes_join()
    assert {node.address for node in await ledger.nodes()} == {NODE.address, OTHER.address}
    assert await ledger.quote(NODE.address) == DAI
