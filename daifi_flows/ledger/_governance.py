"""Records of governance: proposals, who votes with what, what is due, and models' listings."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final

from pydantic import Field

from daifi_flows.cnft import PPM, Address, Bytes32, Label, Noun, Uint, Wei
from daifi_flows.encoding import tagged_hash
from daifi_flows.errors import EncodingError
from daifi_flows.ledger._params import Params
from daifi_flows.ledger._records import Record

__all__ = [
    "MAX_CHANGES",
    "MAX_DEMAND_PPM",
    "MAX_OPEN",
    "MAX_VOTES",
    "AgendaEntry",
    "AgendaRecord",
    "Ballot",
    "Choice",
    "ModelChange",
    "ModelListing",
    "ModelRecord",
    "Outcome",
    "ParamChange",
    "ProposalRecord",
    "VoterRecord",
    "changed_params",
    "model_key",
    "proposal_id",
    "proposal_key",
    "voter_key",
]

MAX_CHANGES: Final = 32
"""Most parameters, and most models, that one proposal changes."""
MAX_OPEN: Final = 64
"""Most proposals open at once: so that finding what is due needs no search."""
MAX_VOTES: Final = 32
"""Most open proposals that one account can have voted on."""
MAX_DEMAND_PPM: Final = PPM // 100
"""Most that governance may have one account put up, as a part of all money there is: a hundred
accounts can always be there."""
_DEMANDS: Final = (
    ("staking", "min_stake_wei"),
    ("bids", "deposit_wei"),
    ("disputes", "min_bond_wei"),
    ("rewards", "credit_wei_per_pflop"),
    ("rollup", "min_bond_wei"),
    ("governance", "deposit_wei"),
    ("sealed", "deposit_wei"),
    ("committee", "min_pledge_wei"),
)


class ParamChange(Noun):
    """One parameter's new value, as ``fees``, ``treasury_ppm``, 40000; amounts in wei."""

    group: Label
    field: Label
    value_wei: Wei


class ModelListing(StrEnum):
    """What governance says of a model. A denied model's tasks cannot be opened; allowed ones can
    even while ``governance.whitelist_only`` is on; ``none`` forgets the model."""

    ALLOW = "allow"
    DENY = "deny"
    NONE = "none"


class ModelChange(Noun):
    """A model's new listing, by the digest of its weights."""

    digest: Bytes32
    listing: ModelListing


class Choice(StrEnum):
    """How a stake votes."""

    FOR = "for"
    AGAINST = "against"
    ABSTAIN = "abstain"


class Outcome(StrEnum):
    """Where a proposal stands. Impossible: it passed, but its changes no longer fit together."""

    OPEN = "open"
    EXECUTED = "executed"
    DEFEATED = "defeated"
    NO_QUORUM = "no-quorum"
    IMPOSSIBLE = "impossible"
    CANCELLED = "cancelled"


class ProposalRecord(Record):
    """One proposal, its votes, and what became of it.

    Attributes:
        opened_ms: when it was opened.
        ends_ms: votes are counted that are in blocks dated before this.
        due_ms: when it is executed, if it passes.
        electorate_wei: the most stake there was while votes came in; the quorum is a part of it.
        turnout_wei: what must have voted in any case: a part of the money there was when it was
            opened.
        quorum_ppm, majority_ppm: as they were when it was opened.
    """

    prefix: ClassVar[bytes] = b"g"
    id: Bytes32
    proposer: Address
    title: Label
    changes: tuple[ParamChange, ...]
    models: tuple[ModelChange, ...]
    opened_ms: Uint
    ends_ms: Uint
    due_ms: Uint
    deposit_wei: Wei
    electorate_wei: Wei
    turnout_wei: Wei
    quorum_ppm: Uint
    majority_ppm: Uint
    for_wei: Wei = 0
    against_wei: Wei = 0
    abstain_wei: Wei = 0
    outcome: Outcome = Outcome.OPEN

    def key(self) -> bytes:
        return proposal_key(self.id)

    @property
    def holdings(self) -> Mapping[str, int]:
        return {"escrows": self.deposit_wei}

    @property
    def has_quorum(self) -> bool:
        """Whether enough stake voted; never without any."""
        cast = self.for_wei + self.against_wei + self.abstain_wei
        enough = cast * PPM >= self.electorate_wei * self.quorum_ppm
        return cast > 0 and cast >= self.turnout_wei and enough

    @property
    def passed(self) -> bool:
        """Whether it has its quorum, and its majority of those for and against."""
        decided = self.for_wei + self.against_wei
        return self.has_quorum and self.for_wei * PPM > decided * self.majority_ppm


class Ballot(Noun):
    """One vote on an open proposal: the stake behind it stays until ``ends_ms``."""

    proposal: Bytes32
    ends_ms: Uint
    weight_wei: Wei


class VoterRecord(Record):
    """An account's votes on proposals that are open."""

    prefix: ClassVar[bytes] = b"f"
    voter: Address
    ballots: Annotated[tuple[Ballot, ...], Field(max_length=MAX_VOTES)] = ()

    def key(self) -> bytes:
        return voter_key(self.voter)

    def open_at(self, now_ms: int) -> tuple[Ballot, ...]:
        """Votes on proposals that can still be voted on."""
        return tuple(ballot for ballot in self.ballots if ballot.ends_ms > now_ms)

    def held_wei(self, now_ms: int) -> int:
        """Stake that has voted on a proposal that is still open: it must stay staked, so that it
        cannot vote again from another account."""
        return max((ballot.weight_wei for ballot in self.open_at(now_ms)), default=0)


class AgendaEntry(Noun):
    """When a proposal is due."""

    due_ms: Uint
    proposal: Bytes32


class AgendaRecord(Record):
    """All open proposals, the next one due first."""

    prefix: ClassVar[bytes] = b"j"
    entries: Annotated[tuple[AgendaEntry, ...], Field(max_length=MAX_OPEN)] = ()

    def key(self) -> bytes:
        return self.prefix


class ModelRecord(Record):
    """What governance said of a model."""

    prefix: ClassVar[bytes] = b"m"
    digest: Bytes32
    listing: ModelListing

    def key(self) -> bytes:
        return model_key(self.digest)


def proposal_id(proposer: str, nonce: int) -> bytes:
    """A proposal's id: who proposed it, with which transaction of theirs; 32 bytes."""
    return tagged_hash("daifi/proposal/1", {"proposer": proposer, "nonce": nonce})


def proposal_key(id: bytes) -> bytes:
    """State key of a proposal."""
    return ProposalRecord.prefix + id


def voter_key(address: str) -> bytes:
    """State key of an account's open votes."""
    return VoterRecord.prefix + bytes.fromhex(address[2:])


def model_key(digest: bytes) -> bytes:
    """State key of a model's listing."""
    return ModelRecord.prefix + digest


def changed_params(params: Params, changes: tuple[ParamChange, ...], supply_wei: int) -> Params:
    """The parameters with these changes.

    Args:
        supply_wei: all money there is. What an account must put up to stake, bid, dispute, propose
            or submit is not raised over :data:`MAX_DEMAND_PPM` of it: whoever captures one vote
            must not be able to shut everybody out of the next.

    Raises:
        EncodingError: there is no such parameter, a value is out of its hard bounds, or the
            values do not fit together.
    """
    plain: dict[str, Any] = params.plain()
    for change in changes:
        group = plain.get(change.group)
        if not isinstance(group, dict) or change.field not in group:
            raise EncodingError(f"there is no parameter {change.group}.{change.field}")
        group[change.field] = change.value_wei
    changed = Params.from_plain(plain)
    most_wei = supply_wei * MAX_DEMAND_PPM // PPM
    for group, field in _DEMANDS:
        before_wei, after_wei = (getattr(getattr(p, group), field) for p in (params, changed))
        if after_wei > max(before_wei, most_wei):
            raise EncodingError(
                f"{group}.{field} cannot be over {most_wei} wei, a hundredth of all there is"
            )
    return changed
