"""The judges on Ray: actors that hold seats, and the clients that reach them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from daifi_flows._process import collect_rarely
from daifi_flows.cnft import Attestation, Committee, ReviewRequest
from daifi_flows.dispute import DisputeAttestation
from daifi_flows.errors import CommitteeError, DaifiError
from daifi_flows.judges._blocks import BlockValidator
from daifi_flows.judges._certifier import BlockCertifier
from daifi_flows.judges._client import ReviewClient
from daifi_flows.judges._messages import (
    Asked,
    Case,
    CertifyReply,
    CommitReply,
    HostLost,
    OpenReply,
    ProposeReply,
    RevealReply,
    SignReply,
)
from daifi_flows.judges._office import SeatOffice
from daifi_flows.judges._report import ReviewReport
from daifi_flows.judges._statement_client import FetchLeaf, StatementClient
from daifi_flows.judges._statements import Question, StatementReply
from daifi_flows.judges._succession import SuccessiveCertifier
from daifi_flows.keys import Account
from daifi_flows.proofs import Reference
from daifi_flows.rollup import Batch, BatchAttestation, BatchStatement

__all__ = ["CommitteeClient", "RayCertifier", "SeatHost", "named_hosts", "start_seat_hosts"]

T = TypeVar("T")

ROUND_TIMEOUT_S: Final = 30.0
"""For one call of a round after the first, or one block. They take milliseconds: a host that
does not answer by then hangs, and counts as lost until it does."""

CATCH_UP_TIMEOUT_S: Final = 300.0


class SeatHost:
    """Several seats of the committee in one process: an async actor around a SeatOffice.

    Reviews, rounds and blocks have a thread each, so that certifying a block does not wait for a
    review's prefill. Start it with :func:`start_seat_hosts`, or
    ``ray.remote(SeatHost).options(max_restarts=-1, max_task_retries=0, max_concurrency=64)``.
    Killed at any instant it restarts with the same words: see :class:`SeatOffice`.

    Args:
        committee: the committee these seats belong to.
        seats: their indices.
        keys_dir: folder with their key files.
        reference_factory: makes the verifier's copy of the models, in this process.
        validator_factory: makes the block validator (the ledger's replica), in this process.
        workdir: journal and caches; on one machine all hosts share one.
        byzantine: dishonest seats by index, and how (see :class:`~._byzantine.Traitor`): **for
            tests and benchmarks only**.
    """

    def __init__(
        self,
        committee: Committee,
        seats: Sequence[int],
        keys_dir: Path,
        *,
        reference_factory: Callable[[], Reference],
        validator_factory: Callable[[], BlockValidator] | None,
        workdir: Path,
        byzantine: Mapping[int, str] | None = None,
    ) -> None:
        self._office = SeatOffice(
            committee,
            seats,
            keys_dir,
            reference_factory=reference_factory,
            validator_factory=validator_factory,
            workdir=workdir,
            byzantine=byzantine,
        )
        self._reviews = ThreadPoolExecutor(1, "review")
        self._rounds = ThreadPoolExecutor(2, "round")
        self._blocks = ThreadPoolExecutor(1, "block")
        collect_rarely()

    async def open(self, subject: bytes, docket: bytes) -> OpenReply:
        """Bind the seats to a review, and release their shares of its beacon."""
        return await self._in(self._rounds, self._office.open, subject, docket)

    async def commit(
        self, subject: bytes, beacon: bytes, wave: int, asked: Asked, case: Case
    ) -> CommitReply:
        """Check chunks, and commit to what was found."""
        return await self._in(
            self._reviews, self._office.commit, subject, beacon, wave, asked, case
        )

    async def reveal(self, subject: bytes, look: bytes) -> RevealReply:
        """Open the votes."""
        return await self._in(self._rounds, self._office.reveal, subject, look)

    async def sign(self, subject: bytes, docket: bytes, record: bytes) -> SignReply:
        """Sign the outcome."""
        return await self._in(self._rounds, self._office.sign, subject, docket, record)

    async def statement(self, question: Question) -> StatementReply:
        """Look into a dispute or a batch, and sign what is so."""
        return await self._in(self._reviews, self._office.statement, question)

    async def certify(self, header: bytes, block: bytes) -> CertifyReply:
        """Check and sign one block."""
        return await self._in(self._blocks, self._office.certify, header, block)

    async def propose(self, seat: int, offer: bytes) -> ProposeReply:
        """Have a drawn seat sign the best header on offer."""
        return await self._in(self._blocks, self._office.propose, seat, offer)

    async def resume(self, header: bytes, term: int) -> CertifyReply:
        """Shares of the beacon that follows a final block, and what was said of the next."""
        return await self._in(self._blocks, self._office.resume, header, term)

    async def skip(self, parent: bytes, round: int, term: int) -> CertifyReply:
        """Pass over silent proposers."""
        return await self._in(self._blocks, self._office.skip, parent, round, term)

    async def provide_blocks(self, blocks: Sequence[bytes]) -> int:
        """Bring the replica up to date."""
        return await self._in(self._blocks, self._office.provide_blocks, blocks)

    async def keygen(self, request: bytes) -> bytes:
        """One step of making the group's key, or of handing it on."""
        return await self._in(self._rounds, self._office.keygen, request)

    async def ping(self) -> dict[str, Any]:
        """``pid`` and ``seats``."""
        return {"pid": os.getpid(), "seats": list(self._office.seats)}

    async def warm(self) -> None:
        """Load the models and the replica, so that the first step does not wait for them."""
        await asyncio.gather(
            self._in(self._reviews, self._office.warm_reviews),
            self._in(self._blocks, self._office.warm_blocks),
        )

    async def _in(self, pool: ThreadPoolExecutor, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)


def start_seat_hosts(
    committee: Committee,
    keys_dir: Path,
    *,
    reference_factory: Callable[[], Reference],
    validator_factory: Callable[[], BlockValidator] | None,
    workdir: Path,
    hosts: int = 1,
    byzantine: Mapping[int, str] | None = None,
    **options: Any,
) -> list[ActorHandle[Any]]:
    """Spread the committee's seats evenly over ``hosts`` actors.

    Args:
        **options: Ray actor options for all of them (``num_cpus``, ``resources``, …). ``name``
            is a prefix: the host number is appended.

    Raises:
        CommitteeError: more hosts than seats, or none.
    """
    count = len(committee.seats)
    if not 1 <= hosts <= count:
        raise CommitteeError(f"{count} seats cannot be spread over {hosts} hosts")
    prefix = options.pop("name", None)
    actor = cast("Any", ray.remote(SeatHost))
    started: list[ActorHandle[Any]] = []
    for number in range(hosts):
        mine: dict[str, Any] = {
            "max_restarts": -1,
            "max_task_retries": 0,
            "max_concurrency": 64,
            "num_cpus": 0,
        }
        if prefix is not None:
            mine["name"] = f"{prefix}-{number}"
        seats = range(number * count // hosts, (number + 1) * count // hosts)
        started.append(
            actor.options(**(mine | options)).remote(
                committee,
                list(seats),
                keys_dir,
                reference_factory=reference_factory,
                validator_factory=validator_factory,
                workdir=workdir,
                byzantine=dict(byzantine or {}),
            )
        )
    return started


def named_hosts(prefix: str, namespace: str, hosts: int) -> list[ActorHandle[Any]]:
    """The seat hosts started under this name prefix.

    Raises:
        CommitteeError: one of them does not exist.
    """
    try:
        return [ray.get_actor(f"{prefix}-{number}", namespace=namespace) for number in range(hosts)]
    except ValueError as error:
        raise CommitteeError(f"a seat host is not running: {error}") from error


class RaySeats:
    """Transport to one seat host actor: Ray's errors become this package's."""

    def __init__(self, handle: ActorHandle[Any]) -> None:
        self.handle = handle

    async def open(self, subject: bytes, docket: bytes) -> OpenReply:
        """The beacon's shares."""
        return await _answer(self.handle.open.remote(subject, docket), ROUND_TIMEOUT_S)

    async def commit(
        self, subject: bytes, beacon: bytes, wave: int, asked: Asked, case: Any
    ) -> CommitReply:
        """Commits to votes; takes as long as the re-execution does."""
        return await _answer(self.handle.commit.remote(subject, beacon, wave, asked, case), None)

    async def reveal(self, subject: bytes, look: bytes) -> RevealReply:
        """Openings."""
        return await _answer(self.handle.reveal.remote(subject, look), ROUND_TIMEOUT_S)

    async def sign(self, subject: bytes, docket: bytes, record: bytes) -> SignReply:
        """Signatures."""
        return await _answer(self.handle.sign.remote(subject, docket, record), ROUND_TIMEOUT_S)

    async def statement(self, question: Question) -> StatementReply:
        """Disputes and batches; takes as long as the re-execution does."""
        return await _answer(self.handle.statement.remote(question), None)

    async def certify(self, header: bytes, block: bytes) -> CertifyReply:
        """One block."""
        return await _answer(self.handle.certify.remote(header, block), ROUND_TIMEOUT_S)

    async def propose(self, seat: int, offer: bytes) -> ProposeReply:
        """Proposer's signature; one that does not come soon is not waited for."""
        return await _answer(self.handle.propose.remote(seat, offer), ROUND_TIMEOUT_S)

    async def resume(self, header: bytes, term: int) -> CertifyReply:
        """Beacon shares, and what was said of the next block."""
        return await _answer(self.handle.resume.remote(header, term), ROUND_TIMEOUT_S)

    async def skip(self, parent: bytes, round: int, term: int) -> CertifyReply:
        """Agreement to pass over proposers."""
        return await _answer(self.handle.skip.remote(parent, round, term), ROUND_TIMEOUT_S)

    async def provide_blocks(self, blocks: Sequence[bytes]) -> int:
        """Certified history."""
        return await _answer(self.handle.provide_blocks.remote(blocks), CATCH_UP_TIMEOUT_S)

    async def keygen(self, request: bytes) -> bytes:
        """One step of a key generation."""
        return await _answer(self.handle.keygen.remote(request), ROUND_TIMEOUT_S)


async def _answer(reference: Any, timeout_s: float | None) -> Any:
    try:
        return await asyncio.wait_for(_plain(reference), timeout_s)
    except TimeoutError:
        raise HostLost(f"the seat host did not answer within {timeout_s} s") from None
    except RayTaskError as error:  # raised in the actor: an answer, though not a pleasant one
        cause = error.cause
        if isinstance(cause, DaifiError):
            raise CommitteeError(cause.message, **cause.details) from None
        raise CommitteeError(f"the seat host failed: {type(cause).__name__}: {cause}") from None
    except RayError as error:
        dead = isinstance(error, ActorDiedError)
        raise HostLost(f"the seat host is away ({type(error).__name__})", dead=dead) from None


async def _plain(reference: Any) -> Any:
    return await reference


class CommitteeClient:
    """The committee, for whoever needs a review.

    Args:
        hosts: seat host actors.
        committee: whose seats they hold.
        successors: finds the seat hosts of a later committee; without it nothing is reviewed after
            a handover.
        timeout_s: for a whole review, restarts of hosts included.
        grace_s: how long the rest is waited for once a quorum has answered.

    Raises:
        CommitteeError: the committee is unsound.
    """

    def __init__(
        self,
        hosts: Sequence[ActorHandle[Any]],
        committee: Committee,
        *,
        successors: Callable[[Committee], Sequence[ActorHandle[Any]]] | None = None,
        timeout_s: float = 300.0,
        grace_s: float = 15.0,
    ) -> None:
        self.committee = committee
        seats = [RaySeats(host) for host in hosts]
        self._successors = successors
        self._limits = {"timeout_s": timeout_s, "grace_s": grace_s}
        self._client = ReviewClient(seats, committee, **self._limits)
        self._statements = StatementClient(seats, committee, timeout_s=timeout_s)

    async def review(self, request: ReviewRequest) -> tuple[Attestation, ReviewReport]:
        """The finding of the request's committee on a node's result, and the account of how it
        came.

        Idempotent: a review that was interrupted is continued, a finished one found again.

        Raises:
            CommitteeError: no quorum answered in time, or the seats refuse the request.
        """
        later = request.committee
        if self._successors is not None and later.epoch > self._client.committee.epoch:
            seats = [RaySeats(host) for host in self._successors(later)]
            self._client = ReviewClient(seats, later, **self._limits)
        return await self._client.review(request, share=ray.put)

    async def dispute(self, review: ReviewRequest, number: int = 0) -> DisputeAttestation | None:
        """See :meth:`StatementClient.dispute`."""
        return await self._statements.dispute(review, number)

    async def batch(
        self, statement: BatchStatement, operator: Account, batch: Batch, fetch: FetchLeaf
    ) -> BatchAttestation:
        """See :meth:`StatementClient.batch`."""
        return await self._statements.batch(statement, operator, batch, fetch)


class RayCertifier(SuccessiveCertifier):
    """Satisfies the ledger's ``Certifier`` protocol with seat host actors; crosses Ray itself.

    Args:
        hosts: seat host actors, or what finds them when first needed (see :func:`named_hosts`):
            a restarted ledger actor must not depend on handles its first driver held.
        committee: whose seats they hold.
        successors: finds the seat hosts of a later committee; without it the ledger stops at a
            handover.
        timeout_s: for one block, restarts of hosts and their catching up included.
    """

    def __init__(
        self,
        hosts: Sequence[ActorHandle[Any]] | Callable[[], Sequence[ActorHandle[Any]]],
        committee: Committee,
        *,
        successors: Callable[[Committee], Sequence[ActorHandle[Any]]] | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        super().__init__(committee, self._find)
        self._hosts = hosts
        self._successors = successors
        self._timeout_s = timeout_s

    def _find(self, committee: Committee) -> BlockCertifier:
        if committee == self._first:
            hosts = self._hosts() if callable(self._hosts) else self._hosts
        elif self._successors is not None:
            hosts = self._successors(committee)
        else:
            raise CommitteeError(f"no seat hosts of epoch {committee.epoch} are known: start them")
        seats = [RaySeats(host) for host in hosts]
        return BlockCertifier(seats, committee, timeout_s=self._timeout_s)
