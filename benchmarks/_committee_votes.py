"""What one review costs apart from re-execution: checking 21 votes, and the bytes that pass.

Votes are timed on the reducer alone, each sample with keys and messages that no cache has seen. The
bytes are those of whole reviews over 21 hosts of one seat each: everything that goes to a host and
comes from it, pickled as Ray does, but for the input, the output and the materials.
"""

from __future__ import annotations

import asyncio
import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks._report import Figure
from daifi_flows.cnft import (
    ChunkFinding,
    Content,
    Decision,
    Execution,
    Materials,
    ModelFile,
    ModelManifest,
    ModelRef,
    NodeResult,
    ReviewRequest,
    Subject,
    TaskSpec,
    Usage,
    VoteChoice,
    manifest_digest,
    model_digest,
)
from daifi_flows.encoding import keccak256
from daifi_flows.errors import ModelError
from daifi_flows.judges import SeatKeys, SeatOffice, make_committee
from daifi_flows.judges._client import ReviewClient
from daifi_flows.judges._committee import ReviewState
from daifi_flows.judges._messages import Case, subject_of
from daifi_flows.keys import Account
from daifi_flows.proofs import Claim, make_proof
from daifi_flows.threshold import combine_shares

__all__ = ["figures"]

SEATS: Final = 21
SAMPLES: Final = 11
NODE: Final = Account.from_seed(b"node of the benchmark")
FILES: Final = (ModelFile(path="lib:double", size=1, sha256=bytes(32)),)


class Doubling:
    """A verifier's copy of a step that doubles a number."""

    def missing(self, *_: Any) -> str | None:
        """Nothing is."""
        return None

    def reexecute(self, _spec: TaskSpec, input: Content, _materials: Materials) -> Content:
        """Twice the input."""
        return Content.json_value(input.value() * 2, bytes(32))

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """All texts alike."""
        return np.ones((len(texts), 1), np.float32)

    chat = None

    def prompt_tokens(self, *_arguments: Any) -> Any:
        """There is no language model here."""
        raise ModelError("there is no language model here")

    render_output = end_tokens = prefill = output_rows = calibration = prompt_tokens


def request_of(committee: Any, number: int, output: int = 42) -> ReviewRequest:
    """A review of a step that doubles 21; each number is another task."""
    asked = Content.json_value(21, bytes(32))
    model = ModelRef(
        name="lib:double", digest=model_digest(FILES), engine="function", precision="exact"
    )
    spec = TaskSpec(
        kind="function",
        model=model,
        input_cid=asked.cid,
        scheme="digest",
        max_price_wei=1,
        deadline_ms=2**50,
        buyer=NODE.address,
        nonce=number.to_bytes(32, "big"),
    )
    execution = Execution(Content.json_value(output, bytes(32)), Usage())
    proof = make_proof(Claim(spec, asked, execution.output), execution, NODE, Path())
    manifest = ModelManifest(
        model=model,
        files=FILES,
        signer=NODE.address,
        signature=NODE.sign(manifest_digest(model, FILES, NODE.address)),
    )
    return ReviewRequest(
        ledger_id=keccak256(b"ledger"),
        committee=committee,
        spec=spec,
        attempt=0,
        input=asked,
        result=NodeResult(output=execution.output, proof=proof, manifest=manifest),
    )


def _votes_ms(committee: Any, keys: Sequence[SeatKeys], subject: Subject) -> tuple[float, float]:
    """Milliseconds, by the clock and of CPU, to take 21 signed commits and openings, tally, and
    aggregate 21 signatures."""
    message = subject.beacon_message()
    shares = {own.index: own.share.sign(message) for own in keys if own.share is not None}
    beacon = combine_shares({index: shares[index] for index in range(14)})
    found = ChunkFinding(
        chunk=0,
        decision=VoteChoice.ACCEPT,
        confidence_ppm=999_000,
        reason="the re-execution gives the same bytes",
        panel=tuple(range(12)),
    )
    commits, reveals = [], []
    for own in keys:
        vote, salt = own.vote(subject, 0, [found]), own.salt(subject, 0)
        commits.append(own.commit(vote, salt))
        reveals.append(own.reveal(vote, salt))
    signed = subject.message(Decision.ACCEPTED, 999_000)
    partials = [own.bls.sign(signed) for own in keys]
    state = ReviewState.start(subject, committee).with_beacon(beacon)
    started, worked = time.perf_counter(), time.thread_time()
    state = state.add_commits(commits).close_commits()
    for reveal in reveals:
        state = state.add_reveal(reveal)
    state = state.close_reveals()
    for index, partial in enumerate(partials):
        state = state.add_partial(index, partial)
    _, attestation = state.attested()
    elapsed, worked = time.perf_counter() - started, time.thread_time() - worked
    assert attestation is not None and attestation.signers.bit_count() == SEATS
    return 1000 * elapsed, 1000 * worked


class Counted:
    """A transport to one host that counts what passes."""

    def __init__(self, office: SeatOffice) -> None:
        self.office = office
        self.bytes = 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*arguments: Any) -> Any:
            self.bytes += sum(self._size(argument) for argument in arguments)
            reply = await asyncio.to_thread(getattr(self.office, name), *arguments)
            self.bytes += self._size(reply)
            return reply

        return call

    @staticmethod
    def _size(value: Any) -> int:
        if isinstance(value, Case):
            return len(value.docket.canonical()) + len(value.proof.canonical())
        return len(pickle.dumps(value, protocol=5))


async def _traffic(
    committee: Any, keys: Path, work: Path, output: int, number: int
) -> tuple[float, float]:
    """Bytes per seat of one review: the mean over seats, and the seat with most."""
    offices = [
        SeatOffice(
            committee,
            [index],
            keys,
            reference_factory=Doubling,
            validator_factory=None,
            workdir=work / str(index),
        )
        for index in range(SEATS)
    ]
    hosts = [Counted(office) for office in offices]
    client = ReviewClient(hosts, committee)
    attestation, _ = await client.review(request_of(committee, number, output))
    wanted = Decision.ACCEPTED if output == 42 else Decision.REJECTED
    assert attestation.decision is wanted
    for office in offices:
        office.close()
    counts = [host.bytes for host in hosts]
    return sum(counts) / SEATS, max(counts)


def figures() -> list[Figure]:
    """Time of 21 votes; bytes of a review that accepts, and of one before all seats."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        committee = make_committee(root / "keys", SEATS)
        keys = [SeatKeys.load(root / "keys", index) for index in range(SEATS)]
        subjects = [subject_of(request_of(committee, number)) for number in range(SAMPLES)]
        times = [_votes_ms(committee, keys, subject) for subject in subjects]
        wall, cpu = zip(*times, strict=True)
        baseline = {"CPU, ms": sorted(cpu)[SAMPLES // 2]}
        found = [Figure("aggregate and verify 21 votes", wall, "ms", "<= 20", baseline)]
        for number, (name, output) in enumerate(
            (("accepted at the first look", 42), ("rejected by all seats", 43))
        ):
            mean, most = asyncio.run(
                _traffic(committee, root / "keys", root / f"work{number}", output, 1000 + number)
            )
            found.append(
                Figure(
                    f"bytes per seat and task, {name}",
                    [most / 1000],
                    "kB",
                    "<= 10",
                    {"mean over seats": mean / 1000},
                )
            )
    return found
