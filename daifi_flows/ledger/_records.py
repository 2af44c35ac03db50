"""The ledger's records: what the state holds under each key, and whose money is in it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from operator import attrgetter
from types import MappingProxyType
from typing import Annotated, ClassVar, Final, NamedTuple, Self

from pydantic import Field

from daifi_flows.cnft import (
    PPM,
    Address,
    Bytes32,
    Cid,
    NodeInfo,
    Noun,
    Ppm,
    ProofHeader,
    TaskSpec,
    Uint,
    Wei,
)
from daifi_flows.ledger._origins import Origin, Share, TokenKind, royalties
from daifi_flows.ledger._standing import SeatStanding, Standing
from daifi_flows.ledger._tranches import Tranche, matured, total_wei

__all__ = [
    "BUCKETS",
    "NO_HOLDINGS",
    "ZERO_ADDRESS",
    "AccountRecord",
    "LedgerHealth",
    "Record",
    "SupplyReport",
    "TaskRecord",
    "TaskState",
    "TokenRecord",
]

ZERO_ADDRESS: Final = "0x0000000000000000000000000000000000000000"
"""Payee of burned money in receipts: nobody holds its key."""
BUCKETS: Final = ("balances", "stakes", "unbonding", "escrows", "locked")
"""Where records hold money. The treasury is held by the supply report itself."""
_HELD: Final = attrgetter(*(f"{bucket}_wei" for bucket in BUCKETS), "treasury_wei")
NO_HOLDINGS: Final[Mapping[str, int]] = MappingProxyType({})


class Record(Noun):
    """Base of everything in the state."""

    prefix: ClassVar[bytes]
    """One byte, distinct for each kind of record."""

    def key(self) -> bytes:
        """State key: :attr:`prefix`, then what tells this record from others of its kind."""
        raise NotImplementedError

    @property
    def holdings(self) -> Mapping[str, int]:
        """Wei this record holds, by bucket (see :data:`BUCKETS`)."""
        return NO_HOLDINGS


class TaskState(StrEnum):
    """Where a task stands. Cancelled, unproven, expired and revoked are final, and so is settled
    once its output can no longer be challenged."""

    OPEN = "open"
    ASSIGNED = "assigned"
    COMMITTED = "committed"
    SETTLED = "settled"
    CANCELLED = "cancelled"
    UNPROVEN = "unproven"
    EXPIRED = "expired"
    REVOKED = "revoked"


class TaskRecord(Record):
    """One task: its terms, where it stands, and what is held for it.

    ``attempt`` counts executions that failed (rejected or released). ``price_wei`` is 0 until a
    node is assigned. ``barred`` nodes were rejected, or bid and gave up, and cannot take this task
    again.
    ``assigned_ms`` and ``answered_ms`` are the blocks' times of assignment and commitment,
    ``settled_ms`` that of settlement; ``earned_wei`` is what settlement paid the node.

    Attributes:
        bid_ms: how long nodes may bid in each attempt; 0: no auction.
        reveal_ms: how long they may reveal after that.
        eta_ms: time to answer that the node promised in its bid, as far as it counts; 0: it was
            assigned directly.
        bond_wei: part of the node's stake that vouches for this assignment.
        vouched_until_ms: until then the node's stake is in reach, whatever governance changes.
        challenge_until_ms: from then on the output cannot be disputed any more.
        disputes: how many disputes there were about the output.
        committer: who committed the proof first.
        other_cid: where the other of buyer and node says that the same proof is.
        review_ppm: how likely the committee reviews the committed execution, as it was when the
            proof was committed.
        waived: 1 when it was settled without a review: the lottery had not drawn it.
    """

    prefix: ClassVar[bytes] = b"t"
    task_id: Bytes32
    spec: TaskSpec
    state: TaskState
    attempt: Uint = 0
    escrow_wei: Wei
    price_wei: Wei = 0
    node: Address | None = None
    proof: ProofHeader | None = None
    proof_cid: Cid | None = None
    barred: tuple[Address, ...] = ()
    token_id: Bytes32 | None = None
    assigned_ms: Uint = 0
    answered_ms: Uint = 0
    settled_ms: Uint = 0
    earned_wei: Wei = 0
    bid_ms: Uint = 0
    reveal_ms: Uint = 0
    eta_ms: Uint = 0
    bond_wei: Wei = 0
    vouched_until_ms: Uint = 0
    challenge_until_ms: Uint = 0
    disputes: Uint = 0
    committer: Address | None = None
    other_cid: Cid | None = None
    review_ppm: Ppm = PPM
    operator: Address | None = None
    waived: Annotated[int, Field(ge=0, le=1, strict=True)] = 0

    def key(self) -> bytes:
        return self.prefix + self.task_id

    @property
    def holdings(self) -> Mapping[str, int]:
        return {"escrows": self.escrow_wei}


class AccountRecord(Record):
    """Money, nonce and standing of one address. An address never seen reads as zeros.

    Attributes:
        unbonding: unstaked money that a slash still reaches, until it is due.
        locked: earned money that can be taken back until it is due.
        bonded_wei: part of the stake that vouches for tasks under way and cannot be unstaked. A
            slash may leave less at stake than this.
        engaged_wei: prices of the tasks under way that it was assigned: the stake vouches for all
            of them at once.
        disputed: outputs of this node whose dispute is not decided.
        vouching_until_ms: what is unstaked stays in reach until then at least: unbonding was to
            last so long when the last task was assigned.
        accepted: executions of this node that the committee accepted, ever.
        rejected: executions of this node that the committee rejected, ever.
        reviewed: executions that the committee reviewed one by one and accepted, since it last
            rejected one or came to no finding about one.
        standing: accepted and rejected, fading with time: the ground of its reputation.
        seat: what it has done on the committee; absent before anything was.
    """

    prefix: ClassVar[bytes] = b"a"
    address: Address
    balance_wei: Wei = 0
    nonce: Uint = 0
    stake_wei: Wei = 0
    bonded_wei: Wei = 0
    engaged_wei: Wei = 0
    disputed: Uint = 0
    vouching_until_ms: Uint = 0
    unbonding: tuple[Tranche, ...] = ()
    locked: tuple[Tranche, ...] = ()
    accepted: Uint = 0
    rejected: Uint = 0
    reviewed: Uint = 0
    standing: Standing = Standing()
    seat: SeatStanding | None = None
    registered: NodeInfo | None = None

    def key(self) -> bytes:
        return self.prefix + bytes.fromhex(self.address[2:])

    @property
    def holdings(self) -> Mapping[str, int]:
        held = {"balances": self.balance_wei}
        if self.stake_wei:
            held["stakes"] = self.stake_wei
        if self.unbonding:
            held["unbonding"] = self.unbonding_wei
        if self.locked:
            held["locked"] = self.locked_wei
        return held

    @property
    def free_stake_wei(self) -> int:
        """What of the stake vouches for no task."""
        return max(self.stake_wei - self.bonded_wei, 0)

    @property
    def unbonding_wei(self) -> int:
        """All of :attr:`unbonding`."""
        return total_wei(self.unbonding)

    @property
    def locked_wei(self) -> int:
        """All of :attr:`locked`."""
        return total_wei(self.locked)

    @property
    def reputation_ppm(self) -> int:
        """Mean of the Beta posterior as of the last judged execution; one half without any."""
        return self.standing.reputation_ppm

    @property
    def seat_reputation_ppm(self) -> int:
        """The same of its service on the committee; one half before any."""
        return (self.seat or SeatStanding()).reputation_ppm

    def reach_wei(self, until_ms: int) -> int:
        """What a slash at ``until_ms`` still reaches, if nothing is slashed before: the stake, and
        what of the unbonding is not free by then."""
        late = (tranche for tranche in self.unbonding if tranche.due_ms > until_ms)
        return self.stake_wei + total_wei(tuple(late))

    def at(self, now_ms: int) -> Self:
        """With what is due by ``now_ms`` moved to the balance."""
        if not self.unbonding and not self.locked:
            return self
        unbonded_wei, unbonding = matured(self.unbonding, now_ms)
        unlocked_wei, locked = matured(self.locked, now_ms)
        if not unbonded_wei and not unlocked_wei:
            return self
        return self.model_copy(
            update={
                "balance_wei": self.balance_wei + unbonded_wei + unlocked_wei,
                "unbonding": unbonding,
                "locked": locked,
            }
        )


class TokenRecord(Record):
    """One cNFT.

    Attributes:
        task_id: the task it was minted for; of a merged token, the digest of the merge.
        content: digest of its bundle's core metadata; of a leaf of a batch, of its 160 bytes; of
            a merged token, of its parents' contents.
        effect: digest of what its after-settlement action returned.
        origin: the execution it vouches for; absent where the ledger does not know the spec (a
            leaf of a batch, a merged token).
        royalty_ppm: part of each sale's price that the ``payees`` share (ERC-2981).
        payees: fixed when the token is minted; they add up to one.
        approved: who may move it beside its owner and the owner's operators.
        reuse_fee_wei: what its holder asked for a flash attest; absent: the parameters' share of
            what the execution cost.
        priced_by: who asked that: of a merged token it counts only while it is still theirs.
        of: the executed token that a reference token reuses.
        merged_into: the token this one went into; from then on it cannot move.
        depth: how many merges are under it.
        reproductions: nodes that repeated its execution and got the same output.
        disproven: 1 when its output was proven wrong; it cannot be sold, merged or reused.
        minted_ms: time of the block that minted it, Unix milliseconds.
    """

    prefix: ClassVar[bytes] = b"n"
    token_id: Bytes32
    owner: Address
    parents: tuple[Bytes32, ...]
    task_id: Bytes32
    content: Bytes32
    effect: Bytes32 | None = None
    kind: TokenKind = TokenKind.EXECUTED
    origin: Origin | None = None
    royalty_ppm: Ppm = 0
    payees: tuple[Share, ...] = ()
    approved: Address | None = None
    reuse_fee_wei: Wei | None = None
    priced_by: Address | None = None
    of: Bytes32 | None = None
    merged_into: Bytes32 | None = None
    depth: Uint = 0
    reproductions: Uint = 0
    disproven: Uint = 0
    minted_ms: Uint = 0

    def key(self) -> bytes:
        return self.prefix + self.token_id

    def royalty_info(self, sale_wei: int) -> tuple[tuple[str, int], ...]:
        """Who gets how much of a sale (ERC-2981 ``royaltyInfo``, with several receivers)."""
        parts = royalties(sale_wei, self.royalty_ppm, self.payees)
        return tuple((share.payee, part) for share, part in zip(self.payees, parts, strict=True))

    def fee_to_reuse_wei(self, reuse_ppm: int, holder: str) -> int:
        """What a flash attest of it costs: the holder's price, or a part of the execution's.

        Args:
            holder: its owner, or who owns what it was merged into; the price of one before is
                not the holder's word.
        """
        if self.reuse_fee_wei is not None and self.priced_by == holder:
            return self.reuse_fee_wei
        return self.origin.price_wei * reuse_ppm // PPM if self.origin is not None else 0


class SupplyReport(Record):
    """Where all money is, in wei. The treasury's money is held here; the other buckets are the
    sums over all records that hold some."""

    prefix: ClassVar[bytes] = b"s"
    issued_wei: Wei
    burned_wei: Wei = 0
    balances_wei: Wei = 0
    stakes_wei: Wei = 0
    unbonding_wei: Wei = 0
    escrows_wei: Wei = 0
    locked_wei: Wei = 0
    treasury_wei: Wei = 0

    def key(self) -> bytes:
        return self.prefix

    @property
    def conserved(self) -> bool:
        """balances + stakes + unbonding + escrows + locked + treasury = issued − burned."""
        return sum(_HELD(self)) == self.issued_wei - self.burned_wei

    def bucket(self, name: str) -> int:
        """What one of the :data:`BUCKETS` holds, in wei."""
        return getattr(self, f"{name}_wei")


class LedgerHealth(NamedTuple):
    """What a running ledger reports about itself.

    ``stalled_reason`` is empty while blocks certify, else why the last attempt failed.
    """

    pid: int
    height: int
    pending: int
    stalled_reason: str
