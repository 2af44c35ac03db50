"""A requester that sends another output than the node signed has no honest node rejected."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daifi_flows.cnft import Content, Decision
from daifi_flows.errors import CommitteeError
from daifi_flows.judges import SeatOffice
from daifi_flows.judges._client import ReviewClient


class Here:
    """A transport to an office in this process."""

    def __init__(self, office: SeatOffice) -> None:
        self.office = office

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any) -> Any:
            return await asyncio.to_thread(getattr(self.office, name), *arguments)

        return call


async def test_another_output_than_the_signed_one_is_refused_and_not_rejected(
    seats: Any, request_of: Any, doubling: Any, tmp_path: Path
) -> None:
    office = SeatOffice(
        seats.committee,
        range(21),
        seats.folder,
        reference_factory=doubling(),
        validator_factory=None,
        workdir=tmp_path,
    )
    client = ReviewClient([Here(office)], seats.committee, timeout_s=10)
    request = request_of(42)
    wrong = request.result.model_copy(update={"output": Content.json_value(43, bytes(32))})
    with pytest.raises(CommitteeError, match="not the one the node signed"):
        await client.review(replace(request, result=wrong))
    attestation, _ = await client.review(request)
    assert attestation.decision is Decision.ACCEPTED
    office.close()
