"""Collecting seats' signatures under statements about disputes and batches."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol

from daifi_flows.cnft import Committee, ReviewRequest
from daifi_flows.dispute import DisputeAttestation, DisputeFinding
from daifi_flows.errors import CommitteeError, KeyMaterialError
from daifi_flows.judges._messages import HostLost
from daifi_flows.judges._statements import (
    BatchOrder,
    BatchSample,
    DisputeQuestion,
    OpenBatch,
    Question,
    SampledLeaf,
    StatementReply,
    batch_beacon_message,
    sample_leaves,
)
from daifi_flows.keys import Account, aggregate_bls, verify_bls, verify_bls_aggregate
from daifi_flows.rollup import Batch, BatchAttestation, BatchStatement, Leaf
from daifi_flows.threshold import recover_signature

__all__ = ["FetchLeaf", "StatementClient", "StatementTransport"]

FetchLeaf = Callable[[Leaf], Awaitable[ReviewRequest]]
"""Finds the execution behind a leaf that was drawn."""

_PAUSES_S: Final = (0.2, 0.5, 1.0, 2.0, 3.0, 5.0)
"""Between attempts at a host that is away; the last repeats."""
_MAX_PARTIALS: Final = 256
"""Most signatures taken from one host."""


class StatementTransport(Protocol):
    """How a client reaches one seat host. Raises :class:`HostLost` while it is away, and
    :class:`CommitteeError` when it refuses for good."""

    async def statement(self, question: Question) -> StatementReply:
        """Put a question to the host's seats."""
        ...


class StatementClient:
    """Asks all seats and aggregates what they sign. It is trusted with time only.

    Args:
        hosts: transports to the seat hosts.
        committee: whose seats they hold.
        timeout_s: for one question, restarts of hosts included.
    """

    def __init__(
        self,
        hosts: Sequence[StatementTransport],
        committee: Committee,
        *,
        timeout_s: float = 300.0,
    ) -> None:
        self.hosts = tuple(hosts)
        self.committee = committee
        self.timeout_s = timeout_s

    async def dispute(self, review: ReviewRequest, number: int = 0) -> DisputeAttestation | None:
        """All seats' finding about a settled output: reviewed again in full, whatever was found
        before. ``None`` when no finding has a quorum; a finding that has one never changes.

        Args:
            number: which dispute about the output it is for, from 0.

        Raises:
            CommitteeError: too few seats answered for any finding to have a quorum.
        """
        question = DisputeQuestion(review, number)
        partials: dict[DisputeFinding, dict[int, bytes]] = defaultdict(dict)
        found: list[DisputeAttestation] = []
        answered: set[int] = set()

        def absorb(reply: StatementReply) -> bool:
            answered.update(reply.seats[:_MAX_PARTIALS])
            for seat, finding, signature in reply.signed[:_MAX_PARTIALS]:
                if finding in _FINDINGS:
                    partials[DisputeFinding(finding)].setdefault(seat, signature)
            for finding, given in partials.items():
                if len(given) >= self.committee.quorum and not found:
                    message = question.statement(finding).message()
                    if (made := self._aggregate(message, given)) is not None:
                        found.append(
                            DisputeAttestation(
                                epoch=self.committee.epoch,
                                finding=finding,
                                signers=made[0],
                                signature=made[1],
                            )
                        )
            return bool(found)

        failures = await self._ask(question, absorb)
        if found:
            return found[0]
        if len(answered) < self.committee.quorum:
            raise CommitteeError(
                f"{len(answered)} seats answered about the dispute and {self.committee.quorum} "
                f"are needed{_told(failures)}"
            )
        return None

    async def batch(
        self, statement: BatchStatement, operator: Account, batch: Batch, fetch: FetchLeaf
    ) -> BatchAttestation:
        """The committee's signature under a batch, after it checked a sample of its leaves.

        Args:
            operator: who the statement names; signs the order, and with it fixes the batch.
            batch: the leaves.
            fetch: finds the execution behind each of the (at most 32) leaves that are drawn.

        Raises:
            CommitteeError: the statement is not this batch's, too few seats answered, or they
                found fault with the sample.
        """
        if (statement.root, statement.count) != (batch.root, batch.count):
            raise CommitteeError("the statement is not about this batch: make it from the leaves")
        if statement.total_wei != batch.total_wei:
            raise CommitteeError(f"the leaves add up to {batch.total_wei} wei: state that")
        order = BatchOrder.sign(statement, operator)
        beacon = await self._draw(order)
        leaves = [
            SampledLeaf(batch.proof(index), await fetch(Leaf.decode(batch.leaf(index))))
            for index in sample_leaves(beacon, batch.count)
        ]
        message, partials = statement.message(), dict[int, bytes]()
        found: list[tuple[int, bytes]] = []

        def absorb(reply: StatementReply) -> bool:
            for seat, _, signature in reply.signed[:_MAX_PARTIALS]:
                partials.setdefault(seat, signature)
            made = self._aggregate(message, partials)
            if made is not None:
                found.append(made)
            return made is not None

        failures = await self._ask(BatchSample(order, beacon, tuple(leaves)), absorb)
        if not found:
            raise CommitteeError(
                f"{len(partials)} seats signed the batch and {self.committee.quorum} are needed"
                f"{_told(failures)}"
            )
        signers, signature = found[-1]
        return BatchAttestation(epoch=self.committee.epoch, signers=signers, signature=signature)

    async def _draw(self, order: BatchOrder) -> bytes:
        """The group's signature over the batch."""
        group_key = self.committee.group_key
        if group_key is None:
            raise CommitteeError("the committee has no group key, so it cannot draw a sample")
        publics = [seat.share or b"" for seat in self.committee.seats]
        message, shares = batch_beacon_message(order.statement), dict[int, bytes]()
        found: list[bytes] = []

        def absorb(reply: StatementReply) -> bool:
            for seat, share in reply.shares[:_MAX_PARTIALS]:
                shares.setdefault(seat, share)
            if len(shares) >= self.committee.quorum and not found:
                try:
                    found.append(
                        recover_signature(
                            group_key, publics, self.committee.quorum, message, shares
                        )
                    )
                except KeyMaterialError:
                    return False
            return bool(found)

        failures = await self._ask(OpenBatch(order), absorb)
        if not found:
            raise CommitteeError(
                f"{len(shares)} seats drew the batch's sample and {self.committee.quorum} are "
                f"needed{_told(failures)}"
            )
        return found[0]

    def _aggregate(self, message: bytes, partials: Mapping[int, bytes]) -> tuple[int, bytes] | None:
        """Bitmap and signature of a quorum; bad partials are found one by one, and left out."""
        seats = self.committee.seats
        good = {seat: part for seat, part in partials.items() if 0 <= seat < len(seats)}
        for checked in (False, True):
            if checked:
                good = {
                    seat: part
                    for seat, part in good.items()
                    if verify_bls(seats[seat].public, message, part)
                }
            if len(good) < self.committee.quorum:
                return None
            indices = sorted(good)
            try:
                signature = aggregate_bls([good[index] for index in indices])
            except KeyMaterialError:
                continue
            if verify_bls_aggregate([seats[i].public for i in indices], message, signature):
                return sum(1 << index for index in indices), signature
        return None

    async def _ask(
        self, question: Question, absorb: Callable[[StatementReply], bool]
    ) -> dict[int, str]:
        """Put a question to all hosts until ``absorb`` is content; why hosts said no."""
        failures: dict[int, str] = {}
        waiting = {
            asyncio.ensure_future(self._persist(host, question)): number
            for number, host in enumerate(self.hosts)
        }
        try:
            async with asyncio.timeout(self.timeout_s):
                for task in asyncio.as_completed(list(waiting)):
                    try:
                        reply = await task
                    except CommitteeError as error:
                        failures[len(failures)] = str(error)
                        continue
                    if reply.refused is not None:
                        failures[len(failures)] = reply.refused
                    if absorb(reply):
                        break
        except TimeoutError:
            failures[len(failures)] = f"no answer within {self.timeout_s} s"
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        return failures

    @staticmethod
    async def _persist(host: StatementTransport, question: Question) -> StatementReply:
        attempt = 0
        while True:
            try:
                return await host.statement(question)
            except HostLost:
                await asyncio.sleep(_PAUSES_S[min(attempt, len(_PAUSES_S) - 1)])
                attempt += 1


_FINDINGS: Final = frozenset(finding.value for finding in DisputeFinding)


def _told(failures: Mapping[int, str]) -> str:
    return f" ({'; '.join(sorted(set(failures.values())))})" if failures else ""
