"""What an auditor makes of a proof's verdict."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daifi_flows import verify
from daifi_flows.cnft import Materials
from daifi_flows.proofs import Outcome
from daifi_flows.proofs._scheme import Verdict


@pytest.mark.parametrize(
    ("verdict", "status"),
    [
        (Verdict(Outcome.VALID, 600_000, "holds"), verify.Status.PASSED),
        (Verdict(Outcome.VALID, 400_000, "holds as far as seen"), verify.Status.NOT_MADE),
        (Verdict(Outcome.CANNOT_TELL, 980_000, "neither"), verify.Status.NOT_MADE),
        (Verdict(Outcome.CANNOT_TELL, 500_000, "a near tie"), verify.Status.NOT_MADE),
        (Verdict(Outcome.INVALID, 980_000, "another output"), verify.Status.FAILED),
    ],
    ids=str,
)
def test_what_cannot_be_told_is_no_check_however_little_the_task_asks(
    verdict: Verdict, status: verify.Status, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(verify, "verify_proof", lambda *_: verdict)
    spec = SimpleNamespace(review=SimpleNamespace(min_confidence_ppm=500_000))
    core = SimpleNamespace(spec=spec, output_encryption="none")
    bundle: Any = SimpleNamespace(
        metadata=SimpleNamespace(core=core),
        output=lambda _: None,
        proof=lambda _: SimpleNamespace(
            proof=SimpleNamespace(scheme="token-difr"), input=None, blobs=()
        ),
    )
    auditor = verify._Auditor(bundle, None, None, Materials(), None, tmp_path)
    assert verify._run("proof", auditor.proof).status is status
