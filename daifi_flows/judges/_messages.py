"""What passes between a review's client and the hosts of the seats; seats' words are bytes."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from daifi_flows.cnft import (
    Content,
    Materials,
    Noun,
    Proof,
    ProofHeader,
    Receipt,
    ReviewRequest,
    Subject,
    TaskSpec,
)
from daifi_flows.errors import CommitteeError, EncodingError
from daifi_flows.proofs import spans_of

__all__ = [
    "MAX_WORD_BYTES",
    "Asked",
    "Case",
    "CertifyReply",
    "CommitReply",
    "Docket",
    "HostLost",
    "OpenReply",
    "ProposeReply",
    "RevealReply",
    "SeatTransport",
    "SignReply",
    "deflate",
    "pack",
    "subject_of",
    "unpack",
]

Asked: TypeAlias = Mapping[int, Sequence[int]]
"""The chunks that each seat is asked to check."""


MAX_WORD_BYTES: Final = 80 * 1024
"""Largest commit or reveal of a seat: 64 findings, each with a reason of 200 characters (800 bytes)
and 24 features."""
MAX_PACKED_BYTES: Final = 1024 * 1024
MAX_UNPACKED_BYTES: Final = 16 * 1024 * 1024
"""Most that a set of votes takes: 63 seats, a few waves each."""

N = TypeVar("N", bound=Noun)


class Docket(Noun):
    """What every seat is shown of a case before it takes part: enough to know that the node is
    bound to this proof, and nothing of input and output."""

    spec: TaskSpec
    header: ProofHeader
    committed: Receipt | None = None


@dataclass(frozen=True)
class Case:
    """What a seat that is asked to check needs beside the docket. It crosses the transport as the
    transport likes (by reference, on Ray)."""

    docket: Docket
    input: Content
    output: Content
    proof: Proof
    materials: Materials = field(default_factory=Materials)

    @classmethod
    def of(cls, request: ReviewRequest) -> Case:
        """The case of a review request."""
        result = request.result
        docket = Docket(spec=request.spec, header=result.proof.header, committed=request.committed)
        return cls(docket, request.input, result.output, result.proof, request.materials)


def subject_of(request: ReviewRequest) -> Subject:
    """What a review of this request is about, its proof being checked in the scheme's own parts."""
    return Subject.of(request, len(spans_of(request.result.proof)))


def pack(noun: Noun) -> bytes:
    """Canonical form, deflated: seats that agree say the same words."""
    return deflate(noun.canonical())


def deflate(data: bytes) -> bytes:
    """Bytes as they travel."""
    return zlib.compress(data, 6)


def unpack(kind: type[N], data: bytes, limit: int = MAX_UNPACKED_BYTES) -> N:
    """Reverse of :func:`pack`, for a stranger's bytes.

    Raises:
        EncodingError: something else, or over 1 MiB (``limit`` bytes once inflated).
    """
    if len(data) > MAX_PACKED_BYTES:
        raise EncodingError(f"{len(data)} bytes are more than a review's votes take")
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(data, limit)
    except zlib.error as error:
        raise EncodingError(f"not deflated: {error}") from error
    if not inflater.eof or inflater.unused_data:
        raise EncodingError("cut off, too large once inflated, or followed by something else")
    return kind.from_canonical(plain, max_bytes=limit)


@dataclass(frozen=True)
class OpenReply:
    """A host's seats are bound to the subject.

    Attributes:
        seats: seats this host answers for.
        shares: seat index and share of the review's beacon.
        locked: packed :class:`~._record.Look` of commits that its seats opened votes against
            earlier, in the first look and before all seats (a resumed review).
        signed: packed :class:`~._record.Record` whose outcome they signed earlier.
        refused: why some of its seats take no part.
    """

    seats: tuple[int, ...]
    shares: tuple[tuple[int, bytes], ...]
    locked: tuple[bytes, bytes] = (b"", b"")
    signed: bytes = b""
    refused: str | None = None


@dataclass(frozen=True)
class CommitReply:
    """``commits`` are canonical :class:`VoteCommit`; ``refused`` says why some seats voted not."""

    commits: tuple[bytes, ...]
    refused: str | None = None


@dataclass(frozen=True)
class RevealReply:
    """``reveals`` are canonical :class:`VoteReveal`; ``refused`` says why there are none."""

    reveals: tuple[bytes, ...]
    refused: str | None = None


@dataclass(frozen=True)
class SignReply:
    """Seat index and partial BLS signature over the attestation's message.

    Attributes:
        lost: a set of commits that the record names by its digest is not here: send it whole.
    """

    partials: tuple[tuple[int, bytes], ...]
    refused: str | None = None
    lost: bool = False


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

    async def open(self, subject: bytes, docket: bytes) -> OpenReply:
        """Bind the seats to a subject, and collect their shares of its beacon."""
        ...

    async def commit(
        self, subject: bytes, beacon: bytes, wave: int, asked: Asked, case: Any
    ) -> CommitReply:
        """Have seats check chunks and commit to a vote; ``case`` is a :class:`Case` or the
        transport's reference to one."""
        ...

    async def reveal(self, subject: bytes, look: bytes) -> RevealReply:
        """Have seats open what they committed to; ``look`` is a packed :class:`~._record.Look`."""
        ...

    async def sign(self, subject: bytes, docket: bytes, record: bytes) -> SignReply:
        """Have seats sign the outcome of a packed :class:`~._record.Record`."""
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
