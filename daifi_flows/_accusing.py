"""Showing the ledger what seats did wrong in a review, so that they are slashed for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from daifi_flows.cnft import Attestation, Receipt, Subject
from daifi_flows.errors import LedgerError, TransactionRefused
from daifi_flows.judges import Evidence
from daifi_flows.keys import Account
from daifi_flows.ledger import Settlement

__all__ = ["accuse"]

_log = logging.getLogger(__name__)


async def accuse(
    settlement: Settlement,
    subject: Subject,
    evidence: Sequence[Evidence],
    attestation: Attestation,
    reporter: Account,
) -> tuple[Receipt, ...]:
    """Send evidence of one review to the ledger; the receipts of what it punished.

    What cannot be shown yet (a false accusation, before nobody can dispute the output any more) is
    left out, and so is what somebody else has shown. Never fails: a review is not worth less
    because its cheats get away, and the evidence can be shown again as long as it counts.

    Args:
        subject: what the review was about.
        attestation: what it came to.
        reporter: gets the reporter's share.
    """
    receipts: list[Receipt] = []
    for item in evidence:
        try:
            receipt = await _shown(settlement, subject, item, attestation, reporter)
        except TransactionRefused as error:
            _log.info("seat %d's %s was not punished: %s", item.seat, item.kind, error)
        except LedgerError as error:
            _log.warning("seat %d's %s was not shown: %s", item.seat, item.kind, error)
            break
        else:
            receipts += [receipt] if receipt is not None else []
    return tuple(receipts)


async def _shown(
    settlement: Settlement,
    subject: Subject,
    item: Evidence,
    attestation: Attestation,
    reporter: Account,
) -> Receipt | None:
    if item.kind == "equivocation" and len(item.commits) == 2:
        return await settlement.report_double_vote(subject, *item.commits, reporter)
    if item.opening is None or not item.commits:
        return None
    first = item.commits[0]
    if item.kind == "copy":
        return await settlement.report_copied_vote(subject, first, item.opening, reporter)
    if item.kind in ("false-accusation", "false-acceptance"):
        return await settlement.report_false_vote(
            subject, first, item.opening, attestation, reporter
        )
    return None
