"""Records of accusations: a dispute about a settled output, and an offence that was shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from daifi_flows.cnft import Address, Bytes32, Uint, Wei
from daifi_flows.ledger._records import Record

__all__ = ["DisputeRecord", "OffenceRecord", "dispute_key", "offence_key"]


class DisputeRecord(Record):
    """A dispute that is not decided; one a task at a time.

    Attributes:
        number: how many disputes about this output came before.
        evidence: digest of what the challenger shows the committee; zeros: nothing.
        bond_wei: the challenger's money.
        held_wei: the node's pay for the output.
        opened_ms: time of the block that opened it.
        due_ms: from then on anyone may end it without a finding.
    """

    prefix: ClassVar[bytes] = b"d"
    task_id: Bytes32
    number: Uint
    challenger: Address
    evidence: Bytes32
    bond_wei: Wei
    held_wei: Wei
    opened_ms: Uint
    due_ms: Uint

    def key(self) -> bytes:
        return dispute_key(self.task_id)

    @property
    def holdings(self) -> Mapping[str, int]:
        return {"escrows": self.bond_wei, "locked": self.held_wei}


class OffenceRecord(Record):
    """One place where a key signed two things: it is slashed for it once, however many pairs of
    statements show it.

    Attributes:
        place: digest of the key and of what it may sign once (see ``_rules.evidence``).
        offender: the account that was slashed.
        reporter: who showed it first.
        at_ms: time of that block.
    """

    prefix: ClassVar[bytes] = b"v"
    place: Bytes32
    offender: Address
    reporter: Address
    at_ms: Uint

    def key(self) -> bytes:
        return offence_key(self.place)


def dispute_key(task_id: bytes) -> bytes:
    """State key of a task's dispute."""
    return DisputeRecord.prefix + task_id


def offence_key(place: bytes) -> bytes:
    """State key of an offence."""
    return OffenceRecord.prefix + place
