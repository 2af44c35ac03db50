"""Votes against outputs that stood: shown to the ledger once nobody can dispute the output."""

from __future__ import annotations

import logging
from pathlib import Path

from daifi_flows._accusing import accuse
from daifi_flows._home import Home, StepRecord, read_step
from daifi_flows._review_text import read_report
from daifi_flows.cnft import PPM, NodeResult, Receipt, Subject
from daifi_flows.errors import DaifiError
from daifi_flows.keys import Account
from daifi_flows.ledger import Settlement
from daifi_flows.proofs import spans_of

__all__ = ["accuse_late"]

_log = logging.getLogger(__name__)


async def accuse_late(settlement: Settlement, home: Home, reporter: Account) -> tuple[Receipt, ...]:
    """Show the false accusations in the reviews of a fabric's settled steps.

    What the ledger does not take yet, it is asked again the next time; what it took before, it
    answers with the same receipt. One step that fails does not stop the rest.
    """
    steps = home.root / "steps"
    receipts: list[Receipt] = []
    for path in sorted(steps.glob("*.cbor")) if steps.is_dir() else []:
        try:
            record = read_step(path)
            if record is not None:
                receipts += await _accuse(settlement, home, record, reporter)
        except (DaifiError, OSError) as error:
            _log.warning("the review of step %s cannot be looked at: %s", path, error)
    return tuple(receipts)


async def _accuse(
    settlement: Settlement, home: Home, record: StepRecord, reporter: Account
) -> tuple[Receipt, ...]:
    from daifi_flows._draft import read_draft

    path: Path = home.draft_path(record.spec.task_id)
    if not path.exists():
        return ()
    draft = read_draft(path)
    if draft.report_json is None:
        return ()
    report, attestation = read_report(draft.report_json), draft.attestation
    evidence = [item for item in report.evidence if item.kind == "false-accusation"]
    committee = await settlement.committee_of(attestation.epoch) if evidence else None
    if committee is None:
        return ()
    result = NodeResult.from_canonical(home.result_path(record.spec.task_id).read_bytes())
    rate_ppm = None if draft.committed is None else draft.committed.leaf.review_ppm
    subject = Subject.settled(
        attestation,
        record.spec,
        committee.digest,
        chunks=len(spans_of(result.proof)),
        review_ppm=PPM if rate_ppm is None else rate_ppm,
        operator=draft.core.operator,
    )
    return await accuse(settlement, subject, evidence, attestation, reporter)
