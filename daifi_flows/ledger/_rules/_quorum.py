"""The check that a quorum of the committee signed something."""

from __future__ import annotations

from daifi_flows.cnft import Committee, Seat
from daifi_flows.errors import EncodingError, TransactionRefused
from daifi_flows.keys import verify_bls_aggregate
from daifi_flows.ledger._rules._context import refuse

__all__ = ["require_quorum"]


def require_quorum(
    committee: Committee, signers: int, message: bytes, signature: bytes
) -> tuple[Seat, ...]:
    """The seats of a signer bitmap, when they are a quorum and their aggregate verifies.

    Raises:
        TransactionRefused: ``bad-field`` for a seat that is not there, ``bad-signature`` for too
            few seats or a wrong BLS aggregate.
    """
    try:
        seats = committee.signers(signers)
    except EncodingError as error:
        raise TransactionRefused(str(error), code="bad-field") from error
    if len(seats) < committee.quorum:
        refuse(
            "bad-signature",
            f"{len(seats)} of {len(committee.seats)} seats signed; {committee.quorum} are needed",
        )
    if not verify_bls_aggregate([seat.public for seat in seats], message, signature):
        refuse("bad-signature", "the attestation's aggregate signature does not verify")
    return seats
