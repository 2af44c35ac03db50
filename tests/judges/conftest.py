"""What the judges' tests share: a committee's keys, a step, and a small verifier's model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daifi_flows.cnft import (
    Committee,
    Content,
    Execution,
    Materials,
    ModelFile,
    ModelManifest,
    ModelRef,
    NodeResult,
    ReviewRequest,
    TaskSpec,
    Usage,
    manifest_digest,
    model_digest,
)
from daifi_flows.encoding import keccak256
from daifi_flows.errors import ModelError
from daifi_flows.judges import SeatKeys, SeatOffice, make_committee
from daifi_flows.keys import Account
from daifi_flows.proofs import Claim, make_proof

sys.path.insert(0, str(Path(__file__).parent))

from review_kit import Local

NODE = Account.from_seed(b"node")
BUYER = Account.from_seed(b"buyer")


@dataclass(frozen=True)
class Seats:
    """A committee and where its keys lie."""

    folder: Path
    committee: Committee

    def keys(self, index: int) -> SeatKeys:
        return SeatKeys.load(self.folder, index)


@pytest.fixture(scope="session")
def seats_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Seats]:
    made: dict[int, Seats] = {}

    def make(n: int) -> Seats:
        if n not in made:
            folder = tmp_path_factory.mktemp(f"keys{n}")
            made[n] = Seats(folder, make_committee(folder, n))
        return made[n]

    return make


@pytest.fixture(scope="session")
def seats(seats_of: Callable[[int], Seats]) -> Seats:
    return seats_of(21)


@pytest.fixture
def request_of(seats: Seats) -> Callable[..., ReviewRequest]:
    """A review of ``output`` for the step that doubles a number, proof scheme ``digest``."""

    def make(
        output: Any = 42, *, attempt: int = 0, nonce: int = 0, committee: Committee | None = None,
        deadline_ms: int = 2**62, **changes: Any,
    ) -> ReviewRequest:  # fmt: skip
        asked = Content.json_value({"args": {"n": 21}}, bytes(32))
        files = (ModelFile(path="lib:double", size=1, sha256=bytes(32)),)
        model = ModelRef(
            name="lib:double", digest=model_digest(files), engine="function", precision="exact"
        )
        spec = TaskSpec(
            kind="function",
            model=model,
            input_cid=asked.cid,
            scheme="digest",
            max_price_wei=1,
            deadline_ms=deadline_ms,
            buyer=BUYER.address,
            nonce=keccak256(bytes([nonce])),
        )
        execution = Execution(Content.json_value(output, bytes(32)), Usage())
        proof = make_proof(Claim(spec, asked, execution.output), execution, NODE, Path())
        manifest = ModelManifest(
            model=model,
            files=files,
            signer=NODE.address,
            signature=NODE.sign(manifest_digest(model, files, NODE.address)),
        )
        return ReviewRequest(
            ledger_id=keccak256(b"ledger"),
            committee=committee or seats.committee,
            spec=spec,
            attempt=attempt,
            input=asked,
            result=NodeResult(output=execution.output, proof=proof, manifest=manifest),
            **changes,
        )

    return make


@pytest.fixture
def doubling() -> Callable[..., Callable[[], Any]]:
    """Factories of a Reference that runs the doubling step. Local classes, so that they reach
    Ray's workers by value."""

    def make(
        *, answer: int | None = None, missing: bool = False, wait_for: Path | None = None,
        count: Path | None = None,
    ) -> Callable[[], Any]:  # fmt: skip
        class Doubling:
            def missing(self, spec: TaskSpec, materials: Materials) -> str | None:
                return "the function is not at hand" if missing else None

            def reexecute(self, spec: TaskSpec, input: Content, materials: Materials) -> Content:
                import time

                if count is not None:
                    with count.open("a") as file:
                        file.write("x")
                while wait_for is not None and not wait_for.exists():
                    time.sleep(0.01)
                value = input.value()["args"]["n"] * 2 if answer is None else answer
                return Content.json_value(value, bytes(32))

            def embed(self, texts: Sequence[str]) -> np.ndarray:
                return np.ones((len(texts), 1), np.float32)

            chat = None

            def prompt_tokens(self, *arguments: Any) -> Any:
                raise ModelError("there is no language model here")

            render_output = end_tokens = prefill = output_rows = calibration = prompt_tokens

        return Doubling

    return make


@pytest.fixture
def office_of(seats: Any, tmp_path: Path, doubling: Any) -> Any:
    made: list[SeatOffice] = []

    def make(
        indices: Sequence[int] = range(21), *, folder: str = "work", reference: Any = None,
        **options: Any,
    ) -> SeatOffice:  # fmt: skip
        office = SeatOffice(
            seats.committee,
            list(indices),
            seats.folder,
            reference_factory=reference or doubling(),
            validator_factory=options.pop("validator", None),
            workdir=tmp_path / folder,
            **options,
        )
        made.append(office)
        return office

    yield make
    for office in made:
        office.close()


@pytest.fixture
def hosts_of(office_of: Any) -> Any:
    def make(count: int, *, weather: Any = None, **options: Any) -> list[Local]:
        return [
            Local(
                lambda n=n: office_of(range(n * 21 // count, (n + 1) * 21 // count), **options),
                weather,
            )
            for n in range(count)
        ]

    return make
