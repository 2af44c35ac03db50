"""Collecting what a block needs from seat hosts: a proposer, signatures, the next beacon."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeAlias, TypeVar

from daifi_flows.cnft import (
    BlockHeader,
    Committee,
    QuorumCertificate,
    beacon_message,
    skip_message,
)
from daifi_flows.errors import CommitteeError, KeyMaterialError, LedgerError
from daifi_flows.judges._messages import CertifyReply, HostLost, ProposeReply, SeatTransport
from daifi_flows.judges._rounds import ask_all
from daifi_flows.keys import aggregate_bls, verify_bls, verify_bls_aggregate

__all__ = ["BlockCertifier"]

History: TypeAlias = Callable[[int], Awaitable[Sequence[bytes]]]
"""Certified blocks from a height on."""
R = TypeVar("R", CertifyReply, ProposeReply)

_log = logging.getLogger(__name__)

POST_QUORUM_S: Final = 0.25
"""How long a certified block waits for further signers: finality is what users wait for."""
_NONSENSE: Final = (AttributeError, TypeError, ValueError)
_LONGEST_WAIT_S: Final = 2.0
"""Longest pause on a host's word before it is asked again."""


class BlockCertifier:
    """Satisfies the ledger's ``Certifier`` protocol without importing the ledger.

    Args:
        hosts: transports to the seat hosts.
        committee: whose seats they hold.
        timeout_s: for one block, restarts of hosts and their catching up included.
    """

    def __init__(
        self, hosts: Sequence[SeatTransport], committee: Committee, *, timeout_s: float = 60.0
    ) -> None:
        self.hosts = tuple(hosts)
        self.committee = committee
        self.timeout_s = timeout_s
        self._where: dict[int, SeatTransport] = {}
        """Which host has which seat, as far as it was seen."""

    async def certify(
        self, header: BlockHeader, block: bytes, history: History
    ) -> Sequence[tuple[int, bytes, bytes]]:
        """Partial signatures over ``QuorumCertificate.message(header.digest)``, checked, and with
        each the seat's share of the next beacon, not checked (empty: none came).

        Args:
            block: canonical block with that header.
            history: certified blocks from a height on, for hosts that lag.

        Returns:
            (seat index, signature, share), one a seat, by index. Fewer than a quorum when not
            enough seats answered in time or they refuse the block.

        Raises:
            LedgerError: too few agree, and one obeys a newer writer (``details["fenced_by"]``).
        """
        message, head = QuorumCertificate.message(header.digest), header.canonical()
        partials: dict[int, bytes] = {}
        shares: dict[int, bytes] = {}

        def absorb(number: int, reply: CertifyReply) -> None:
            good = self._take(reply, message, partials)
            self._where.update(dict.fromkeys(good, self.hosts[number]))
            fresh = self._fresh(reply.shares, shares)  # of its own seats only
            shares.update({index: fresh[index] for index in good if index in fresh})

        await self._ask_all(lambda host: host.certify(head, block), absorb, partials, history)
        return [(index, each, shares.get(index, b"")) for index, each in sorted(partials.items())]

    async def resume(
        self, header: BlockHeader, term: int, history: History
    ) -> tuple[Sequence[tuple[int, bytes]], Sequence[int], Sequence[bytes]]:
        """What seats say to whoever begins to propose on top of a final block.

        Returns:
            Each seat's share of the next beacon, checked; the highest round that hosts' seats
            passed over, for each host that has one; blocks on top of it that were signed, those
            that most hosts show first.
        """
        message, head = beacon_message(header.digest), header.canonical()
        shares: dict[int, bytes] = {}
        passed: list[int] = []
        blocks: Counter[bytes] = Counter()

        def absorb(_: int, reply: CertifyReply) -> None:
            # One host must not fill the places of others' seats.
            for index, share in self._fresh(reply.shares, shares).items():
                public = self.committee.seats[index].share
                if public is not None and verify_bls(public, message, share):
                    shares[index] = share
            if isinstance(reply.passed, int):
                passed.append(reply.passed)
            if reply.block:
                blocks[reply.block] += 1

        await self._ask_all(lambda host: host.resume(head, term), absorb, shares, history)
        return sorted(shares.items()), passed, [block for block, _ in blocks.most_common()]

    async def skip(
        self, parent: BlockHeader, round: int, term: int, history: History
    ) -> Sequence[tuple[int, bytes]]:
        """Partial signatures over ``skip_message(parent.digest, round)``, checked. Seats agree only
        when they have been asked for some time: this waits for that."""
        message, head = skip_message(parent.digest, round), parent.canonical()
        partials: dict[int, bytes] = {}

        async def call(host: SeatTransport) -> CertifyReply:
            while (reply := await host.skip(head, round, term)).wait_s is not None:
                await asyncio.sleep(min(max(reply.wait_s, 0.01), _LONGEST_WAIT_S))
            return reply

        def absorb(_: int, reply: CertifyReply) -> None:
            self._take(reply, message, partials)

        await self._ask_all(call, absorb, partials, history)
        return sorted(partials.items())

    async def propose(self, seat: int, offer: bytes, history: History) -> tuple[bytes, bytes]:
        """The block hash that a drawn seat chose from an offer, and its signature as proposer; the
        signature is not checked.

        Raises:
            CommitteeError: the seat's host is away, refuses, or no host has the seat.
        """
        known = self._where.get(seat)
        hosts = self.hosts if known is None else (known,)

        async def ask(host: SeatTransport) -> tuple[SeatTransport, ProposeReply]:
            return host, await self._caught_up(host, lambda h: h.propose(seat, offer), history)

        tasks = [asyncio.ensure_future(ask(host)) for host in hosts]
        trouble = "no host has it"
        try:
            for each in asyncio.as_completed(tasks):
                try:
                    host, reply = await each
                except CommitteeError as error:
                    trouble = str(error)
                    continue
                if reply.absent:
                    continue
                self._where[seat] = host
                if reply.refused is None:
                    return reply.block_hash, reply.signature
                trouble = reply.refused
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._where.pop(seat, None)
        raise CommitteeError(f"seat {seat} proposes nothing: {trouble}")

    async def _ask_all(
        self,
        call: Callable[[SeatTransport], Awaitable[CertifyReply]],
        absorb: Callable[[int, CertifyReply], None],
        got: Mapping[int, bytes],
        history: History,
    ) -> None:
        def patience_s(_: float) -> float | None:
            if len(got) == len(self.committee.seats):
                return 0.0
            return POST_QUORUM_S if len(got) >= self.committee.quorum else None

        fenced_by: list[int] = []

        async def ask(host: SeatTransport) -> CertifyReply:
            try:
                return await self._caught_up(host, call, history)
            except _NONSENSE as error:
                raise CommitteeError(f"the seat host's answer makes no sense: {error}") from error

        def take(number: int, reply: CertifyReply) -> None:
            try:
                absorb(number, reply)
                if isinstance(reply.fenced_by, int):
                    fenced_by.append(reply.fenced_by)
            except _NONSENSE as error:  # one host must not spoil what the others say
                _log.warning("the answer of seat host %d makes no sense: %s", number, error)

        deadline = asyncio.get_running_loop().time() + self.timeout_s
        await ask_all(self.hosts, ask, take, patience_s, deadline=deadline)
        if fenced_by and len(got) < self.committee.quorum:  # a quorum outvotes one that lies
            raise LedgerError(
                f"a writer with term {max(fenced_by)} has replaced this one; start it again as a "
                "follower",
                fenced_by=max(fenced_by),
            )

    async def _caught_up(
        self, host: SeatTransport, call: Callable[[SeatTransport], Awaitable[R]], history: History
    ) -> R:
        """Ask a host, and give it the blocks it lacks for its answer."""
        reached = -1
        while (reply := await call(host)).needs_from is not None:
            if reply.needs_from <= reached:  # a page of history brought it no further
                raise HostLost("the seat host's replica does not catch up with the ledger")
            reached = reply.needs_from
            await host.provide_blocks(await history(reached))
        return reply

    def _fresh(
        self, items: Sequence[tuple[int, bytes]], known: Mapping[int, bytes]
    ) -> dict[int, bytes]:
        count = len(self.committee.seats)
        return {i: item for i, item in items[:count] if 0 <= i < count and i not in known}

    def _take(self, reply: CertifyReply, message: bytes, partials: dict[int, bytes]) -> list[int]:
        """Add what is valid; whose it is."""
        good = _good(self._fresh(reply.partials, partials), self.committee, message)
        partials.update(good)
        return list(good)


def _good(partials: dict[int, bytes], committee: Committee, message: bytes) -> dict[int, bytes]:
    """The valid ones: one check for all of them, and one each only when that fails."""
    publics = {index: committee.seats[index].public for index in partials}
    if not partials:
        return {}
    try:
        together = aggregate_bls(list(partials.values()))
    except KeyMaterialError:
        together = b""
    if verify_bls_aggregate(list(publics.values()), message, together):
        return partials
    return {
        index: partial
        for index, partial in partials.items()
        if verify_bls(publics[index], message, partial)
    }
