"""Records of emission: the schedule, an epoch's pool, and what each node did in an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from daifi_flows.cnft import PPM, Address, Uint, Wei
from daifi_flows.ledger._economics import Latency
from daifi_flows.ledger._records import Record

__all__ = ["EpochRecord", "NodeEpochRecord", "ScheduleRecord", "epoch_key", "node_epoch_key"]

_Flag = Annotated[int, Field(ge=0, le=1, strict=True)]


class ScheduleRecord(Record):
    """Where emission and the price index stand; one record.

    Attributes:
        since_ms: when the present λ came into force.
        left_wei: what was still to be issued then.
        lambda_ppb: λ, in 10⁻⁹ a year.
        epoch: the latest epoch in which work was settled.
        index_ppm: the price index of that epoch.
        used_mflop: work settled in that epoch so far, megaFLOP.
    """

    prefix: ClassVar[bytes] = b"i"
    since_ms: Uint
    left_wei: Wei
    lambda_ppb: Uint
    epoch: Uint = 0
    index_ppm: Uint = PPM
    used_mflop: Uint = 0

    def key(self) -> bytes:
        return self.prefix


class EpochRecord(Record):
    """An epoch in which work was settled, until the last node has claimed.

    Attributes:
        ends_ms: the first instant after it.
        emission_wei: what it issues, E(start) − E(end).
        weights: ΣP over its nodes.
        nodes: how many nodes have not claimed.
        closed: 1 when its emission is issued.
        pool_wei: issued and not yet claimed.
    """

    prefix: ClassVar[bytes] = b"e"
    epoch: Uint
    ends_ms: Uint
    emission_wei: Wei
    weights: Uint = 0
    nodes: Uint = 0
    closed: _Flag = 0
    pool_wei: Wei = 0

    def key(self) -> bytes:
        return epoch_key(self.epoch)

    @property
    def holdings(self) -> Mapping[str, int]:
        return {"locked": self.pool_wei}


class NodeEpochRecord(Record):
    """What a node did in an epoch, until it has claimed its reward.

    Attributes:
        mflop: work that counts, megaFLOP.
        waits: how many waits the next two sum up.
        total_ms: sum of the waits from assignment to answer.
        squares_ms2: sum of their squares.
        weight: P, in ΣP of the epoch.
        held: open disputes over outputs of this epoch; no claim before they are decided.
        free_ms: no claim before this instant: a dispute that stayed open gave more time for others.
        forfeited: 1 when an output of this epoch was proven wrong; the weight stays 0.
    """

    prefix: ClassVar[bytes] = b"w"
    node: Address
    epoch: Uint
    mflop: Uint = 0
    waits: Uint = 0
    total_ms: Uint = 0
    squares_ms2: Uint = 0
    weight: Uint = 0
    held: Uint = 0
    free_ms: Uint = 0
    forfeited: _Flag = 0

    def key(self) -> bytes:
        return node_epoch_key(self.node, self.epoch)

    @property
    def latency(self) -> Latency:
        """Its waits."""
        return Latency(self.waits, self.total_ms, self.squares_ms2)


def epoch_key(epoch: int) -> bytes:
    """State key of an epoch."""
    return EpochRecord.prefix + epoch.to_bytes(8, "big")


def node_epoch_key(node: str, epoch: int) -> bytes:
    """State key of a node's part in an epoch."""
    return NodeEpochRecord.prefix + bytes.fromhex(node[2:]) + epoch.to_bytes(8, "big")
