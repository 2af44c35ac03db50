"""What the ledger's tests share: keys, a genesis, a certifier with real BLS seats, a scenario."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from daifi_flows.cnft import (
    Attestation,
    Basis,
    BlockHeader,
    ChunkFinding,
    Committee,
    Decision,
    ModelRef,
    NodeInfo,
    ProofHeader,
    QuorumCertificate,
    Review,
    Seat,
    Statement,
    Subject,
    TaskSpec,
    Usage,
    Vote,
    VoteChoice,
    VoteCommit,
    VoteReveal,
    attestation_message,
    beacon_message,
    proof_digest,
    proposal_digest,
    skip_message,
)
from daifi_flows.encoding import cid_of, keccak256
from daifi_flows.errors import CommitteeError, OutOfSync
from daifi_flows.keys import Account, BlsKey, aggregate_bls
from daifi_flows.ledger import Genesis, Params, Replica
from daifi_flows.ledger._auction import Bid, Proposal
from daifi_flows.ledger._blocks import Block
from daifi_flows.ledger._certifier import History
from daifi_flows.ledger._params import FeeParams
from daifi_flows.threshold import deal

T = TypeVar("T")

DAI = 10**18
T0 = 1_700_000_000_000
SEAT_KEYS = [BlsKey.from_seed(b"seat%d" % i) for i in range(21)]
SEAT_ACCOUNTS = [Account.from_seed(b"seat%d" % i) for i in range(21)]
BUYER = Account.from_seed(b"buyer")
NODE = Account.from_seed(b"node")
OTHER = Account.from_seed(b"other node")
STRANGER = Account.from_seed(b"stranger")
TREASURY = Account.from_seed(b"treasury")
BUILDER = Account.from_seed(b"builder")

FREE = FeeParams(fee_per_byte_wei=0)
"""Most tests count prices; those of fees say so."""

DEALING = deal(b"the dealer of the tests".ljust(32), 21, 14)
COMMITTEE = Committee(
    epoch=1,
    seats=tuple(
        Seat(
            index=i,
            public=key.public,
            possession=key.prove_possession(),
            account=SEAT_ACCOUNTS[i].address,
            share=DEALING.shares[i],
        )
        for i, key in enumerate(SEAT_KEYS)
    ),
    group_key=DEALING.group_key,
)


def make_genesis(salt: bytes = bytes(32), params: Params | None = None) -> Genesis:
    """Buyer 1,000 DAi, two nodes 200 DAi each; transactions are free unless ``params`` say."""
    return Genesis.create(
        salt=salt,
        timestamp_ms=T0,
        allocations=[
            (BUYER.address, 1_000 * DAI),
            (NODE.address, 200 * DAI),
            (OTHER.address, 200 * DAI),
        ],
        committee=COMMITTEE,
        params=params if params is not None else Params(fees=FREE),
        treasury=TREASURY.address,
    )


GENESIS = make_genesis()


def make_spec(nonce: int = 0, **changes: object) -> TaskSpec:
    """A task of the buyer's, distinct for each nonce."""
    values: dict[str, object] = {
        "kind": "test",
        "model": ModelRef(name="m", digest=keccak256(b"m"), engine="function", precision="exact"),
        "input_cid": cid_of(b"input"),
        "parents": (),
        "scheme": "digest",
        "review": Review(attempts=3),
        "max_price_wei": 5 * DAI,
        "deadline_ms": T0 + 3_600_000,
        "buyer": BUYER.address,
        "nonce": nonce.to_bytes(32, "big"),
    }
    return TaskSpec.model_validate(values | changes)


def make_header(spec: TaskSpec, node: Account = NODE, **changes: object) -> ProofHeader:
    """A proof header signed by ``node``."""
    values: dict[str, object] = {
        "task_id": spec.task_id,
        "model_digest": spec.model.digest,
        "input_cid": spec.input_cid,
        "output_cid": cid_of(b"output"),
        "transcript": bytes(32),
        "usage": Usage(),
    }
    statement = Statement.model_validate(values | changes)
    payload_hash = keccak256(b"payload")
    digest = proof_digest(spec.scheme, statement, payload_hash, node.address)
    return ProofHeader(
        scheme=spec.scheme,
        statement=statement,
        payload_hash=payload_hash,
        node=node.address,
        signature=node.sign(digest),
    )


PROOF_CID = cid_of(b"proof")


def attest(
    spec: TaskSpec,
    decision: Decision = Decision.ACCEPTED,
    *,
    ledger_id: bytes = GENESIS.ledger_id,
    signers: Sequence[int] = range(14),
    **changes: object,
) -> Attestation:
    """The committee's signed finding; ``changes`` are signed too."""
    values: dict[str, object] = {
        "epoch": 1,
        "attempt": 0,
        "node": NODE.address,
        "output_cid": cid_of(b"output"),
        "proof_cid": PROOF_CID,
        "confidence_ppm": 995_000,
    }
    values |= {"ledger_id": ledger_id, "task_id": spec.task_id, "decision": decision} | changes
    message = attestation_message(**values)  # pyright: ignore
    return Attestation.model_validate(
        values
        | {
            "signers": sum(1 << i for i in signers),
            "signature": aggregate_bls([SEAT_KEYS[i].sign(message) for i in signers]),
        }
    )


def waived(spec: TaskSpec, **changes: object) -> Attestation:
    """What seats sign about an execution that the lottery did not draw."""
    return attest(spec, **({"basis": Basis.WAIVED, "confidence_ppm": 0} | changes))


def subject_of(spec: TaskSpec, **changes: object) -> Subject:
    """What a review of the node's first answer is about."""
    values: dict[str, object] = {
        "ledger_id": GENESIS.ledger_id,
        "committee": COMMITTEE.digest,
        "epoch": 1,
        "task_id": spec.task_id,
        "attempt": 0,
        "node": NODE.address,
        "output_cid": cid_of(b"output"),
        "proof_cid": PROOF_CID,
        "min_confidence_ppm": spec.review.min_confidence_ppm,
        "deadline_ms": spec.deadline_ms,
        "chunks": 3,
    }
    return Subject.model_validate(values | changes)


def make_vote(
    subject: Subject, seat: int, *choices: VoteChoice, wave: int = 0, reason: str = ""
) -> Vote:
    """A seat's findings about the first chunks; it accepts the first when no choice is given."""
    findings = tuple(
        ChunkFinding(chunk=chunk, decision=choice, confidence_ppm=995_000, reason=reason)
        for chunk, choice in enumerate(choices or (VoteChoice.ACCEPT,))
    )
    return Vote(seat=seat, subject=subject.digest, wave=wave, findings=findings)


def bound(vote: Vote, seat: int | None = None, salt: bytes = bytes(32)) -> VoteCommit:
    """The commitment to a vote that its seat signs, or, copied, another."""
    unsigned = VoteCommit(
        seat=vote.seat if seat is None else seat,
        subject=vote.subject,
        wave=vote.wave,
        commitment=vote.commitment(salt),
        signature=bytes(96),
    )
    signature = SEAT_KEYS[unsigned.seat].sign(unsigned.message())
    return unsigned.model_copy(update={"signature": signature})


def opened(vote: Vote, salt: bytes = bytes(32)) -> VoteReveal:
    """The opening of :func:`bound`'s commitment."""
    return VoteReveal(vote=vote, salt=salt)


def info_of(node: Account, price_wei: int = DAI) -> NodeInfo:
    """A registration."""
    return NodeInfo(
        name="n", address=node.address, device="cpu", engines=("function",), price_wei=price_wei
    )


def reseal(block: Block, signer: Account = BUILDER, **header: object) -> Block:
    """The block with another header, signed again by its builder and its proposer."""
    changed = block.header.model_copy(update=header)
    seats = {account.address: account for account in SEAT_ACCOUNTS}
    bid = Bid.sign(changed, block.seal.bid_wei, signer)
    proposal = Proposal.sign(changed, seats.get(changed.proposer, BUYER))
    seal = block.seal.model_copy(update={"builder": bid.signature, "proposer": proposal.signature})
    return block.model_copy(update={"header": changed, "seal": seal})


@dataclass
class SeatsHere:
    """A certifier whose seats live in this process, over one replica. Picklable before use."""

    genesis: Genesis
    seats: Sequence[int] = range(21)
    replica: Replica | None = None
    asked: list[int] = field(default_factory=list)
    silent: set[int] = field(default_factory=set)
    """Seats that propose nothing."""
    proposed: dict[tuple[int, int], bytes] = field(default_factory=dict)
    """The one header signed at each height and round."""
    passed: dict[int, int] = field(default_factory=dict)
    """The highest round passed over, by height."""

    async def certify(
        self, header: BlockHeader, block: bytes, history: History
    ) -> Sequence[tuple[int, bytes, bytes]]:
        self.asked.append(header.height)
        if self.passed.get(header.height, -1) >= header.round:
            return []
        return self.sign(await self._synced(lambda replica: replica.check(block), history))

    def sign(self, digest: bytes) -> list[tuple[int, bytes, bytes]]:
        message = QuorumCertificate.message(digest)
        shares = dict(self._shares(digest))
        return [(i, SEAT_KEYS[i].sign(message), shares[i]) for i in self.seats]

    async def propose(self, seat: int, offer: bytes, history: History) -> tuple[bytes, bytes]:
        if seat in self.silent or seat not in self.seats:
            raise CommitteeError(f"seat {seat} is silent")
        account = SEAT_ACCOUNTS[seat]
        header = await self._synced(lambda r: r.choose(offer, account.address), history)
        digest = self.proposed.setdefault((header.height, header.round), header.digest)
        if digest != header.digest:
            raise CommitteeError(f"seat {seat} proposed another block")
        return digest, account.sign(proposal_digest(digest))

    async def resume(
        self, header: BlockHeader, term: int, history: History
    ) -> tuple[Sequence[tuple[int, bytes]], Sequence[int], Sequence[bytes]]:
        await self._synced(lambda replica: replica.confirm(header, term), history)
        assert self.replica is not None
        passed = self.passed.get(header.height + 1)
        block = self.replica.signed_after(header.digest)
        return (
            self._shares(header.digest),
            [] if passed is None else [passed],
            [block] if block else [],
        )

    async def skip(
        self, parent: BlockHeader, round: int, term: int, history: History
    ) -> Sequence[tuple[int, bytes]]:
        await self._synced(lambda replica: replica.confirm(parent, term), history)
        assert self.replica is not None
        if self.replica.signed_after(parent.digest):
            return []
        self.passed[parent.height + 1] = max(self.passed.get(parent.height + 1, 0), round)
        message = skip_message(parent.digest, round)
        return [(i, SEAT_KEYS[i].sign(message)) for i in self.seats]

    def _shares(self, digest: bytes) -> list[tuple[int, bytes]]:
        return [(i, DEALING.secrets[i].sign(beacon_message(digest))) for i in self.seats]

    async def _synced(self, ask: Callable[[Replica], T], history: History) -> T:
        if self.replica is None:
            self.replica = Replica(self.genesis)
        while True:
            try:
                return ask(self.replica)
            except OutOfSync as error:
                self.replica.catch_up(await history(error.details["from_height"]))
