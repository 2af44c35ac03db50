"""What the committee signs about a disputed output."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from daifi_flows._noun import Address, Bytes32, Bytes96, Cid, Noun, Uint
from daifi_flows.encoding import canonical

__all__ = ["MAX_DISPUTES", "DisputeAttestation", "DisputeFinding", "DisputeStatement"]

MAX_DISPUTES: Final = 3
"""Most disputes about one output: each that the committee leaves open makes room for one more."""


class DisputeFinding(StrEnum):
    """What a review by all seats found about a settled output."""

    UPHELD = "upheld"
    """The output is wrong: the challenger is right."""
    DISMISSED = "dismissed"
    """The output is right."""
    UNDECIDED = "undecided"
    """The seats could not agree, or could not tell."""


class DisputeStatement(Noun):
    """What every signing seat signs: a finding about one dispute on one ledger.

    Attributes:
        number: which dispute about this output, from 0.
        attempt, node, output_cid, proof_cid: as settled.
    """

    ledger_id: Bytes32
    epoch: Uint
    task_id: Bytes32
    number: Uint
    attempt: Uint
    node: Address
    output_cid: Cid
    proof_cid: Cid
    finding: DisputeFinding

    def message(self) -> bytes:
        """``"daifi/dispute/1" ‖ dag-cbor(statement)``: a seat's BLS key signs it."""
        return b"daifi/dispute/1" + canonical(self.plain())


class DisputeAttestation(Noun):
    """A finding, and a quorum's signature over :meth:`DisputeStatement.message`."""

    epoch: Uint
    finding: DisputeFinding
    signers: Uint
    signature: Bytes96
