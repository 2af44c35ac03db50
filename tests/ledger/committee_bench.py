"""Committees that change: candidates with keys, new shares of the old secret, seats that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import ledger_kinds as t
from ledger_bench import Bench
from ledger_kit import (
    BUYER,
    COMMITTEE,
    DAI,
    DEALING,
    FREE,
    NODE,
    OTHER,
    SEAT_ACCOUNTS,
    SEAT_KEYS,
    T0,
    SeatsHere,
    info_of,
)

from daifi_flows.cnft import (
    BlockHeader,
    Committee,
    NodeInfo,
    QuorumCertificate,
    Seat,
    beacon_message,
    proposal_digest,
    skip_message,
)
from daifi_flows.encoding import keccak256
from daifi_flows.epochs import handover_message
from daifi_flows.errors import CommitteeError
from daifi_flows.keys import Account, BlsKey, aggregate_bls
from daifi_flows.ledger import Genesis, Params
from daifi_flows.ledger._certifier import History
from daifi_flows.ledger._committees import RollRecord
from daifi_flows.ledger._nodes import prove_node_key
from daifi_flows.ledger._policy import CommitteeParams
from daifi_flows.ledger._seal import Offer
from daifi_flows.ledger._state import Base
from daifi_flows.threshold import Dealing

ORDER = 0x73EDA753299D7D483339D80809A1D80553BDA402FFFE5BFEFFFFFFFF00000001
CANDIDATES = [Account.from_seed(b"candidate%d" % i) for i in range(30)]
CANDIDATE_KEYS = [BlsKey.from_seed(b"candidate%d" % i) for i in range(30)]
KEYS = {key.public: key for key in (*SEAT_KEYS, *CANDIDATE_KEYS)}
ACCOUNTS = {account.address: account for account in (*SEAT_ACCOUNTS, *CANDIDATES)}
EPOCH_MS, REDRAW_MS, GRACE_MS = 60_000, 10_000, 30_000
RULES = CommitteeParams(
    epoch_ms=EPOCH_MS, redraw_ms=REDRAW_MS, grace_ms=GRACE_MS, min_pledge_wei=100 * DAI
)


def genesis_with(committee: Committee = COMMITTEE, **rules: int) -> Genesis:
    """The buyer and thirty candidates, 1,000 DAi each; two nodes, 200 DAi each."""
    return Genesis.create(
        salt=keccak256(b"committees"),
        timestamp_ms=T0,
        allocations=[
            *((each.address, 1_000 * DAI) for each in (BUYER, *CANDIDATES)),
            *((each.address, 200 * DAI) for each in (NODE, OTHER)),
        ],
        committee=committee,
        params=Params(fees=FREE, committee=RULES.model_copy(update=rules)),
    )


GENESIS = genesis_with()


@lru_cache(maxsize=64)
def dealt_again(n: int, epoch: int) -> Dealing:
    """Shares of the tests' group secret for an epoch: what resharing among its seats would give,
    by somebody who knows all the old ones."""
    if epoch == COMMITTEE.epoch:
        return DEALING
    quorum = COMMITTEE.quorum
    xs = range(1, quorum + 1)
    secret = 0
    for x in xs:
        others = [other for other in xs if other != x]
        factor = prod(others) * pow(prod(other - x for other in others), -1, ORDER)
        secret += int.from_bytes(DEALING.secrets[x - 1].secret, "big") * factor
    degree = (n + (n - 1) // 3) // 2  # a committee's quorum less one
    seeds = [b"again%d/%d" % (epoch, power) for power in range(degree)]
    polynomial = [secret, *(int.from_bytes(keccak256(seed), "big") for seed in seeds)]
    keys: list[BlsKey] = []
    for x in range(1, n + 1):
        value = sum(c * pow(x, power, ORDER) for power, c in enumerate(polynomial)) % ORDER
        keys.append(BlsKey(value.to_bytes(32, "big")))
    return Dealing(DEALING.group_key, tuple(key.public for key in keys), tuple(keys))


def candidate_info(index: int, **changes: object) -> NodeInfo:
    """A candidate's registration as a node."""
    account, key = CANDIDATES[index], CANDIDATE_KEYS[index]
    proven = {
        "bls_public": key.public,
        "bls_possession": prove_node_key(key, account.address),
    }
    return info_of(account).model_copy(update=proven | changes)


def aggregated(
    committee: Committee, message: bytes, signers: Sequence[int] | None = None
) -> QuorumCertificate:
    """What these seats (a quorum, if not said) sign together."""
    chosen = range(committee.quorum) if signers is None else signers
    partials = [KEYS[committee.seats[i].public].sign(message) for i in chosen]
    bitmap = sum(1 << i for i in chosen)
    return QuorumCertificate(signers=bitmap, signature=aggregate_bls(partials))


def drawn_committee(roll: RollRecord, **changes: object) -> Committee:
    """The committee that a roll's draw leads to."""
    dealing = dealt_again(len(roll.drawn), roll.epoch)
    seats = tuple(
        Seat(
            index=index,
            public=entrant.public,
            possession=KEYS[entrant.public].prove_possession(),
            account=entrant.candidate.account,
            share=dealing.shares[index],
            operator=entrant.candidate.operator,
            weight=entrant.candidate.weight,
        )
        for index, entrant in enumerate(roll.elected)
    )
    committee = Committee(epoch=roll.epoch, seats=seats, group_key=dealing.group_key)
    return committee.model_copy(update=changes)


def handed_over(
    state: Base,
    new: Committee | None = None,
    *,
    signers: Sequence[int] | None = None,
    by: Committee | None = None,
    ledger_id: bytes = GENESIS.ledger_id,
    **said: object,
) -> dict[str, object]:
    """Fields of the handover that the present committee (or ``by``) signs."""
    roll = state.find(RollRecord, RollRecord.prefix)
    assert roll is not None
    new = new if new is not None else drawn_committee(roll)
    office = state.in_office()
    values = {
        "ledger_id": ledger_id,
        "previous": office.digest,
        "draw": roll.digest,
        "epoch": new.epoch,
        "committee": new.digest,
    } | said
    message = handover_message(**values)  # pyright: ignore
    certificate = aggregated(by if by is not None else office.committee, message, signers)
    return {"committee": new, "certificate": certificate}


def certified_header(
    by: Committee,
    height: int,
    *,
    signers: Sequence[int] | None = None,
    ledger_id: bytes = GENESIS.ledger_id,
    **changes: object,
) -> dict[str, object]:
    """A header that a committee signed, as a chain would have it at a height."""
    values: dict[str, object] = {
        "ledger_id": ledger_id,
        "height": height,
        "timestamp_ms": T0 + height,
        "proposer": BUYER.address,
        "builder": BUYER.address,
        "beacon": keccak256(b"beacon"),
        "round": 0,
        "epoch": by.epoch,
        "committee": by.digest,
        "history_size": 0,
    }
    zeros = {name: bytes(32) for name in BlockHeader.model_fields if name not in values}
    header = BlockHeader.model_validate(values | zeros | changes)
    message = QuorumCertificate.message(header.digest)
    return {"header": header, "certificate": aggregated(by, message, signers)}


class CommitteeBench(Bench):
    """A machine whose thirty candidates have offered themselves."""

    def __init__(self, genesis: Genesis = GENESIS, offers: int = 30) -> None:
        super().__init__(genesis)
        for index in range(offers):
            account = CANDIDATES[index]
            self.do(t.Register, account, info=candidate_info(index))
            self.do(t.Stake, account, amount_wei=(200 + 10 * index) * DAI)
            self.do(t.OfferSeat, account, pledge_wei=(150 + 10 * index) * DAI)

    def roll(self) -> RollRecord:
        found = self.state.find(RollRecord, RollRecord.prefix)
        assert found is not None
        return found

    def close(self) -> RollRecord:
        office = self.state.in_office()
        self.now = max(self.now, office.since_ms + EPOCH_MS)
        self.do(t.CloseRoll, BUYER, epoch=office.committee.epoch + 1)
        return self.roll()

    def draw(self, beacon: bytes | None = None) -> RollRecord:
        roll = self.close()
        beacon = beacon if beacon is not None else keccak256(b"beacon%d" % roll.epoch)
        header = certified_header(self.state.committee(), roll.height + 1, beacon=beacon)
        self.height = roll.height + 2
        self.do(t.DrawSeats, BUYER, **header)
        return self.roll()

    def rotate(self, beacon: bytes | None = None) -> Committee:
        self.draw(beacon)
        self.do(t.HandOver, BUYER, **handed_over(self.state))
        return self.state.committee()


@dataclass
class SeatsThatChange(SeatsHere):
    """Seats in this process, of whichever committee is in office. It knows everybody's keys."""

    async def certify(
        self, header: BlockHeader, block: bytes, history: History
    ) -> Sequence[tuple[int, bytes, bytes]]:
        self.asked.append(header.height)
        digest = await self._synced(lambda replica: replica.check(block), history)
        committee = self._of(header.epoch)
        message = QuorumCertificate.message(digest)
        shares = dict(self._given(committee, digest))
        return [
            (seat.index, KEYS[seat.public].sign(message), shares[seat.index])
            for seat in committee.seats
        ]

    def _of(self, epoch: int) -> Committee:
        assert self.replica is not None
        found = self.replica._base.seated_in(epoch)
        assert found is not None
        return found.committee

    def _given(self, committee: Committee, digest: bytes) -> list[tuple[int, bytes]]:
        dealing = dealt_again(len(committee.seats), committee.epoch)
        message = beacon_message(digest)
        return [(seat.index, dealing.secrets[seat.index].sign(message)) for seat in committee.seats]

    async def propose(self, seat: int, offer: bytes, history: History) -> tuple[bytes, bytes]:
        if seat in self.silent:
            raise CommitteeError(f"seat {seat} is silent")
        epoch = Offer.from_canonical(offer).bids[0].header.epoch
        account = await self._synced(lambda r: self._account(r, offer, epoch, seat), history)
        header = await self._synced(lambda r: r.choose(offer, account.address), history)
        return header.digest, account.sign(proposal_digest(header.digest))

    def _account(self, replica, offer: bytes, epoch: int, seat: int) -> Account:
        parsed = Offer.from_canonical(offer)
        replica._reach(parsed.bids[0].header.height, parsed.justify)
        return ACCOUNTS[self._of(epoch).seats[seat].account]

    async def resume(self, header, term, history):
        await self._synced(lambda replica: replica.confirm(header, term), history)
        block = self.replica.signed_after(header.digest)
        return self._given(self._next(header), header.digest), [], [block] if block else []

    def _next(self, header: BlockHeader) -> Committee:
        """Who certifies the block after one that is final or signed here."""
        replica = self.replica
        assert replica is not None
        signed = replica._signed
        if signed is not None and signed.header.digest == header.digest:
            return signed.layer.committee()
        return replica._base.committee()

    async def skip(self, parent, round, term, history):
        await self._synced(lambda replica: replica.confirm(parent, term), history)
        if self.replica.signed_after(parent.digest):
            return []
        message = skip_message(parent.digest, round)
        seats = self._next(parent).seats
        return [(seat.index, KEYS[seat.public].sign(message)) for seat in seats]
