"""Disputes about settled outputs."""

from __future__ import annotations

from typing import ClassVar, Final

from daifi_flows.cnft import Bytes32, Uint, Wei
from daifi_flows.dispute import DisputeAttestation
from daifi_flows.encoding import keccak256
from daifi_flows.ledger._tx._base import Transaction

__all__ = ["KINDS", "Dispute", "ExpireDispute", "ResolveDispute"]


class _OnDispute(Transaction):
    task_id: Bytes32
    number: Uint

    def mark(self) -> bytes | None:
        return self.kind.encode() + b"/" + self.task_id + self.number.to_bytes(8, "big")


class Dispute(_OnDispute):
    """Challenge a settled output; anyone may who puts up the bond.

    Attributes:
        number: how many disputes about this output came before.
        bond_wei: lost when the committee finds the output right.
        evidence: digest of what the challenger shows the committee; zeros: nothing.
    """

    kind: ClassVar[str] = "dispute"
    bond_wei: Wei
    evidence: Bytes32

    def mark(self) -> bytes | None:
        # Of two challengers only one is first; the other must not be told that it was.
        mark = super().mark()
        assert mark is not None
        return mark + bytes.fromhex(self.sender[2:])


class ResolveDispute(_OnDispute):
    """Bring the committee's finding; anyone may."""

    kind: ClassVar[str] = "resolve-dispute"
    attestation: DisputeAttestation

    def intent(self) -> bytes:
        # Two honest aggregations of one finding may differ in their signers.
        place = self.task_id + self.number.to_bytes(8, "big")
        return keccak256(self.kind.encode() + place + self.attestation.finding.encode())


class ExpireDispute(_OnDispute):
    """End a dispute that the committee did not answer in time; anyone may."""

    kind: ClassVar[str] = "expire-dispute"


KINDS: Final[tuple[type[Transaction], ...]] = (Dispute, ResolveDispute, ExpireDispute)
