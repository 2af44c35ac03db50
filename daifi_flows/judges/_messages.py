"""What passes between a review's client and the hosts of the seats; seats' words are bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from daifi_flows.errors import CommitteeError

__all__ = [
    "CertifyReply",
    "CommitReply",
    "HostLost",
    "ProposeReply",
    "RevealReply",
    "SeatTransport",
    "SignReply",
]


@dataclass(frozen=True)
class CommitReply:
    """Round one. ``commits`` are canonical :class:`VoteCommit`.

    Attributes:
        seats: seats this host answers for.
        locked: commits its seats opened their votes against earlier (a resumed review).
        signed: reveals its seats signed a tally of earlier (a resumed review).
    """

    seats: tuple[int, ...]
    commits: tuple[bytes, ...]
    locked: tuple[bytes, ...] | None = None
    signed: tuple[bytes, ...] | None = None


@dataclass(frozen=True)
class RevealReply:
    """Round two. ``reveals`` are canonical :class:`VoteReveal`; ``refused`` says why there are
    none."""

    reveals: tuple[bytes, ...]
    refused: str | None = None


@dataclass(frozen=True)
class SignReply:
    """Round three: seat index and partial BLS signature over the attestation's message."""

    partials: tuple[tuple[int, bytes], ...]
    refused: str | None = None


@dataclass(frozen=True)
class CertifyReply:
    """A host's answer about one block.

    Attributes:
        partials: seat index and signature over what was asked (``QuorumCertificate.message``, or
            ``skip_message``).
        shares: seat index and share of the signature that gives the next block's beacon.
        needs_from: the host's replica lags: it needs the certified blocks from this height on.
        passed: highest round that its seats passed over, of the block asked about.
        block: a block its seats signed on top of the one asked about, not final yet.
        wait_s: the host will not agree before this many seconds have passed; ask again then.
        refused: why the host will never agree.
        fenced_by: the newer term of the writer that replaced the one who asks.
    """

    partials: tuple[tuple[int, bytes], ...] = ()
    shares: tuple[tuple[int, bytes], ...] = ()
    needs_from: int | None = None
    passed: int | None = None
    block: bytes = b""
    wait_s: float | None = None
    refused: str | None = None
    fenced_by: int | None = None


@dataclass(frozen=True)
class ProposeReply:
    """A host's answer to an offer of headers for one of its seats to sign.

    Attributes:
        block_hash: of the header it chose, with the seat's ``signature`` as proposer.
        absent: the seat is not here.
        needs_from, refused, fenced_by: as in :class:`CertifyReply`.
    """

    block_hash: bytes = b""
    signature: bytes = b""
    absent: bool = False
    needs_from: int | None = None
    refused: str | None = None
    fenced_by: int | None = None


class HostLost(CommitteeError):
    """A seat host does not answer now; it may be restarting. ``details["dead"]`` is true when
    its process is known to have ended."""


class SeatTransport(Protocol):
    """How a client reaches one seat host. Methods raise :class:`HostLost` when it is away, and
    :class:`CommitteeError` when it refuses the request for good."""

    async def commit(self, request: Any) -> CommitReply:
        """Round one; ``request`` is a ReviewRequest or the transport's reference to one."""
        ...

    async def reveal(self, subject: bytes, commits: Sequence[bytes]) -> RevealReply:
        """Round two."""
        ...

    async def sign(
        self, subject: bytes, commits: Sequence[bytes], reveals: Sequence[bytes]
    ) -> SignReply:
        """Round three."""
        ...

    async def certify(self, header: bytes, block: bytes) -> CertifyReply:
        """Check and sign one block of the ledger."""
        ...

    async def propose(self, seat: int, offer: bytes) -> ProposeReply:
        """Have a drawn seat sign the best header on offer."""
        ...

    async def resume(self, header: bytes, term: int) -> CertifyReply:
        """Shares of the beacon that follows a final block, and what was said of the next."""
        ...

    async def skip(self, parent: bytes, round: int, term: int) -> CertifyReply:
        """Pass over the proposers of the block after ``parent`` up to ``round``."""
        ...

    async def provide_blocks(self, blocks: Sequence[bytes]) -> int:
        """Give a lagging replica certified blocks; returns how many it was given."""
        ...
