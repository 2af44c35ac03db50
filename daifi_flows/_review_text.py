"""The account of a review as it lies in a bundle: JSON text of bounded length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from daifi_flows.bundle import MAX_REPORT_CHARS
from daifi_flows.encoding import canonical_json, decode_canonical_json
from daifi_flows.errors import EncodingError

if TYPE_CHECKING:
    from daifi_flows.judges import ReviewReport

__all__ = ["read_report", "report_text"]


def report_text(report: ReviewReport) -> str:
    """The account as canonical JSON text.

    One that is too long for a bundle is told in less detail: first without the judges' features,
    then without the single findings, at last without the parts of the output.
    """
    told = report.jsonable()
    for shorten in (_without_features, _without_findings, _without_chunks):
        text = canonical_json(told).decode()
        if len(text) <= MAX_REPORT_CHARS:
            return text
        told = shorten(told)
    return canonical_json(told).decode()


def read_report(text: str) -> ReviewReport:
    """Parse what :func:`report_text` wrote.

    Raises:
        EncodingError: it is something else, or spelt in another way.
    """
    from daifi_flows.judges import ReviewReport

    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise EncodingError(f"the account is no text: {error}") from error
    report = ReviewReport.from_plain(decode_canonical_json(data, max_bytes=4 * MAX_REPORT_CHARS))
    if canonical_json(report.jsonable()) != data:
        raise EncodingError("the account is spelt differently from what it says")
    return report


def _without_features(told: dict[str, Any]) -> dict[str, Any]:
    chunks = [
        {**chunk, "findings": [{**each, "features": []} for each in chunk["findings"]]}
        for chunk in told["chunks"]
    ]
    return {**told, "chunks": chunks}


def _without_findings(told: dict[str, Any]) -> dict[str, Any]:
    chunks = [{**chunk, "findings": []} for chunk in told["chunks"]]
    return {**told, "chunks": chunks, "evidence": [], "dropped": []}


def _without_chunks(told: dict[str, Any]) -> dict[str, Any]:
    return {**told, "chunks": []}
