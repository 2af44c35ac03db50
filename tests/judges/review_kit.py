"""What the review tests share: seats in this process, and a transport to them that misbehaves."""

from __future__ import annotations

import asyncio
import pickle
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from daifi_flows.cnft import (
    BlockHeader,
    Committee,
    Decision,
    QuorumCertificate,
    Receipt,
    ReviewRequest,
    TxReceipt,
    VoteCommit,
    VoteReveal,
)
from daifi_flows.judges import HostLost, ReviewState, SeatOffice, subject_of
from daifi_flows.judges._messages import (
    Asked,
    Case,
    CertifyReply,
    CommitReply,
    OpenReply,
    RevealReply,
    SignReply,
    pack,
)
from daifi_flows.judges._record import Record, look_of
from daifi_flows.keys import aggregate_bls, verify_bls_aggregate
from daifi_flows.merkle import merkle_proof, merkle_root


def check(attestation: Any, committee: Committee, decision: Decision) -> None:
    """The attestation holds, and says this."""
    signers = committee.signers(attestation.signers)
    assert len(signers) >= committee.quorum
    assert verify_bls_aggregate(
        [seat.public for seat in signers], attestation.message(), attestation.signature
    )
    assert attestation.decision is decision


def committed(request: ReviewRequest, seats: Any, review_ppm: int, **leaf: Any) -> Receipt:
    """The certified receipt of the node's commit, in a block with others."""
    values: dict[str, Any] = {
        "tx": bytes(32),
        "kind": "commit",
        "sender": request.result.proof.node,
        "task_id": request.spec.task_id,
        "node": request.result.proof.node,
        "content": request.result.proof.header.digest(),
        "attempt": request.attempt,
        "review_ppm": review_ppm,
    }
    mine = TxReceipt.model_validate(values | leaf)
    leaves = [mine.model_copy(update={"tx": n.to_bytes(32, "big")}) for n in range(1000)]
    leaves[77] = mine
    encoded = [each.canonical() for each in leaves]
    committee, zero = seats.committee, bytes(32)
    header = BlockHeader(
        ledger_id=request.ledger_id, height=7, parent=zero, tx_root=zero,
        receipt_root=merkle_root(encoded), state_root=zero, timestamp_ms=0,
        proposer=committee.seats[0].account, builder=committee.seats[0].account, beacon=zero,
        round=0, epoch=committee.epoch, committee=committee.digest, history_root=zero,
        history_size=0,
    )  # fmt: skip
    message = QuorumCertificate.message(header.digest)
    signature = aggregate_bls([seats.keys(index).bls.sign(message) for index in range(14)])
    return Receipt(
        header=header,
        certificate=QuorumCertificate(signers=2**14 - 1, signature=signature),
        leaf=mine,
        index=77,
        size=1000,
        path=merkle_proof(encoded, 77),
    )


@dataclass
class Weather:
    """What a network does to messages."""

    loss: float = 0.0
    duplicates: float = 0.0
    delay_s: float = 0.0
    seed: int = 0
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)


class Local:
    """A transport to seats in this process that can lose calls and restart its host.

    ``sent`` and ``received`` count bytes by call, as they cross (pickled, as Ray does)."""

    def __init__(self, make: Callable[[], SeatOffice], weather: Weather | None = None) -> None:
        self.make = make
        self.office = make()
        self.weather = weather
        self.lose: list[str] = []
        self.down = False
        self.restarts = 0
        self.calls: list[str] = []
        self.sent: Counter[str] = Counter()
        self.received: Counter[str] = Counter()

    async def _call(self, name: str, *arguments: Any) -> Any:
        self.calls.append(name)
        if self.down:
            raise HostLost("down")
        if name in self.lose:
            self.lose.remove(name)
            self.office.close()
            self.office = self.make()
            self.restarts += 1
            raise HostLost("restarting")
        plain = [item for item in arguments if not isinstance(item, Case)]
        self.sent[name] += len(pickle.dumps(plain))
        weather = self.weather or Weather()
        if weather.random.random() < weather.loss:
            raise HostLost("the question was lost")
        await asyncio.sleep(weather.random.random() * weather.delay_s)
        reply = await asyncio.to_thread(getattr(self.office, name), *arguments)
        if weather.random.random() < weather.duplicates:
            again = await asyncio.to_thread(getattr(self.office, name), *arguments)
            assert type(again) is type(reply)
        await asyncio.sleep(weather.random.random() * weather.delay_s)
        if weather.random.random() < weather.loss:
            raise HostLost("the answer was lost")
        self.received[name] += len(pickle.dumps(reply))
        return reply

    async def open(self, subject: bytes, docket: bytes) -> OpenReply:
        return await self._call("open", subject, docket)

    async def commit(
        self, subject: bytes, beacon: bytes, wave: int, asked: Asked, case: Case
    ) -> CommitReply:
        return await self._call("commit", subject, beacon, wave, asked, case)

    async def reveal(self, subject: bytes, look: bytes) -> RevealReply:
        return await self._call("reveal", subject, look)

    async def sign(self, subject: bytes, docket: bytes, record: bytes) -> SignReply:
        return await self._call("sign", subject, docket, record)

    async def certify(self, header: bytes, block: bytes) -> CertifyReply:
        return await self._call("certify", header, block)

    async def provide_blocks(self, blocks: Sequence[bytes]) -> int:
        return await self._call("provide_blocks", blocks)


class Script:
    """One review, step by step, over offices in this process."""

    def __init__(self, request: ReviewRequest, offices: Sequence[SeatOffice]) -> None:
        self.offices = offices
        self.subject = subject_of(request)
        self.case = Case.of(request)
        self.state = ReviewState.start(self.subject, request.committee)
        self.subject_bytes = self.subject.canonical()
        self.docket_bytes = pack(self.case.docket)

    def open(self) -> list[OpenReply]:
        replies = [office.open(self.subject_bytes, self.docket_bytes) for office in self.offices]
        for reply in replies:
            for index, share in reply.shares:
                self.state = self.state.add_share(index, share)
        return replies

    @property
    def first(self) -> dict[int, tuple[int, ...]]:
        """Who is asked in wave 0."""
        asked: dict[int, tuple[int, ...]] = {}
        for chunk, seats in enumerate(self.state.first_asked):
            for seat in seats:
                asked[seat] = (*asked.get(seat, ()), chunk)
        return asked

    def commit(self, wave: int = 0, asked: Asked | None = None) -> list[CommitReply]:
        assert self.state.beacon is not None
        wanted = self.first if asked is None else asked
        replies = [
            office.commit(self.subject_bytes, self.state.beacon, wave, wanted, self.case)
            for office in self.offices
        ]
        self.state = self.state.add_commits(
            VoteCommit.from_canonical(item) for reply in replies for item in reply.commits
        )
        return replies

    def reveal(
        self, commits: Sequence[VoteCommit] | None = None, *, full: bool = False
    ) -> list[RevealReply]:
        """Close the commits and have them opened; or only ask, about another set of them."""
        look = look_of(self.state.commit_set(full=full) if commits is None else commits)
        replies = [office.reveal(self.subject_bytes, pack(look)) for office in self.offices]
        if commits is None:
            self.state = self.state.close_commits()
            for reply in replies:
                for item in reply.reveals:
                    self.state = self.state.add_reveal(VoteReveal.from_canonical(item))
            self.state = self.state.close_reveals()
        return replies

    @property
    def record(self) -> Record:
        assert self.state.beacon is not None
        looks = [
            look_of(commits, self.state.reveal_set(full=full))
            for full in (False, True)
            if (commits := self.state.commit_set(full=full))
        ]
        return Record(beacon=self.state.beacon, looks=tuple(looks))

    def sign(self, record: Record | None = None) -> list[SignReply]:
        packed = pack(record or self.record)
        return [
            office.sign(self.subject_bytes, self.docket_bytes, packed) for office in self.offices
        ]
