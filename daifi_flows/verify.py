"""The offline verifier: what an auditor who trusts nobody runs on a bundle.

It needs the bundle and the committee's public keys; re-execution also needs the model. It runs
every check it can, in order, and says of each: passed, failed, or could not be made and why.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Final

from daifi_flows._review_check import check_review
from daifi_flows.bundle import Bundle, Effect, ProofFile
from daifi_flows.cnft import (
    Attestation,
    Basis,
    Committee,
    Content,
    Decision,
    Materials,
    TaskSpec,
    model_digest,
    token_id_of,
)
from daifi_flows.encoding import cid_of, keccak256, sha256
from daifi_flows.epochs import Committees, Handover, UnknownEpoch
from daifi_flows.errors import BundleError, DaifiError, EncodingError, KeyMaterialError
from daifi_flows.history import verify_receipt
from daifi_flows.keys import (
    Account,
    check_seat_possession,
    open_box,
    recover_address,
    verify_bls_aggregate,
)
from daifi_flows.proofs import Claim, Outcome, Reference, verify_proof

__all__ = [
    "Check",
    "Report",
    "Status",
    "check_lineage",
    "verify_attestation",
    "verify_bundle",
    "verify_receipt",
]


_SIGNED: Final = ("committee signature", "certified block")
"""Checks without which nothing else in a bundle means anything."""


class Status(StrEnum):
    """Outcome of one check."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_MADE = "not-made"


@dataclass(frozen=True)
class Check:
    """One line of a verification report."""

    name: str
    status: Status
    detail: str


@dataclass(frozen=True)
class Report:
    """What was found about one bundle."""

    path: str
    checks: tuple[Check, ...]
    token_id: bytes | None = None
    parents: tuple[bytes, ...] = ()
    name: str = ""
    details: Mapping[str, str] = field(default_factory=lambda: {})

    @property
    def ok(self) -> bool:
        """Whether no check failed, and the committee's signatures were checked."""
        status = {check.name: check.status for check in self.checks}
        signed = all(status.get(name) is Status.PASSED for name in _SIGNED)
        return signed and Status.FAILED not in status.values()


class _Failed(Exception):
    """A check found something wrong."""


class _NotMade(Exception):
    """A check lacks something it needs."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise _Failed(message)


def verify_attestation(attestation: Attestation, committee: Committee) -> int:
    """Number of seats behind an attestation.

    Raises:
        EncodingError: too few signers, an unknown seat, or the aggregate does not verify.
    """
    seats = committee.signers(attestation.signers)
    if len(seats) < committee.quorum:
        raise EncodingError(f"{len(seats)} seats signed; the quorum is {committee.quorum}")
    if attestation.epoch != committee.epoch:
        raise EncodingError(f"signed in epoch {attestation.epoch}, not {committee.epoch}")
    publics = [seat.public for seat in seats]
    if not verify_bls_aggregate(publics, attestation.message(), attestation.signature):
        raise EncodingError("the aggregate BLS signature does not verify")
    return len(seats)


class _Auditor:
    """Runs the checks on one bundle, in order."""

    def __init__(
        self,
        bundle: Bundle,
        trusted: Committee | Committees | None,
        reference: Reference | None,
        extra: Materials,
        reader: Account | None,
        workdir: Path,
    ) -> None:
        self.bundle = bundle
        self.trusted = Committees.trusting(trusted) if trusted is not None else None
        self.reference = reference
        self.extra = extra
        self.reader = reader
        self.workdir = workdir

    def steps(self) -> Iterable[tuple[str, Callable[[], str]]]:
        yield "format", self.format
        yield "content ids", self.content_ids
        yield "node signature", self.node_signature
        yield "model attestation", self.model_attestation
        yield "committee signature", self.committee_signature
        yield "certified block", self.certified_block
        yield "review", self.review
        if self.bundle.metadata.effect is not None or self.bundle.metadata.core.has_effect:
            yield "effect", self.effect
        yield "materials", self.materials
        yield "proof", self.proof

    @property
    def spec(self) -> TaskSpec:
        return self.bundle.metadata.core.spec

    def format(self) -> str:
        _ = self.bundle.metadata, self.bundle.manifest
        encryption = self.bundle.metadata.core.output_encryption
        _require(
            encryption in ("none", "x25519-sealed-box"), f"encryption {encryption!r} is not known"
        )
        if not self.sealed:
            _ = self._output(), self.envelope
        return "four files in their one canonical spelling"

    @property
    def sealed(self) -> bool:
        """Whether output and proof are closed to this auditor."""
        return self.bundle.metadata.core.output_encryption != "none" and self.reader is None

    def _open(self, name: str) -> bytes | None:
        """The plaintext of a sealed file; ``None`` when the file is not sealed."""
        if self.bundle.metadata.core.output_encryption == "none":
            return None
        if self.reader is None:
            raise _NotMade("output and proof are sealed to the buyer: give --key FILE")
        return open_box(self.reader, self.bundle.files[name])

    def _output(self) -> Content:
        return self.bundle.output(self._open("output_tensor"))

    @cached_property
    def envelope(self) -> ProofFile:
        """The proof envelope, opened."""
        return self.bundle.proof(self._open("zk_proof.bin"))

    def content_ids(self) -> str:
        core = self.bundle.metadata.core
        for name, cid in (
            ("output_tensor", core.output_file_cid),
            ("zk_proof.bin", core.proof_file_cid),
            ("model_attestation", core.manifest_cid),
        ):
            _require(
                cid_of(self.bundle.files[name]) == cid, f"{name} is not the file the metadata names"
            )
        if self.sealed:
            return f"bundle {self.bundle.cid}; what is sealed was not opened"
        proof, statement = self.envelope.proof, self.envelope.proof.statement
        _require(proof.cid == core.proof_cid, "the proof is not the one the metadata names")
        _require(statement.task_id == self.spec.task_id, "the proof is about another task")
        _require(statement.usage == core.usage, "usage differs from what the node signed")
        _require(statement.input_cid == self.spec.input_cid, "the proof is about another input")
        _require(statement.output_cid == core.output_cid, "the proof is about another output")
        _require(
            statement.model_digest == self.spec.model.digest, "the proof is about another model"
        )
        if self.envelope.input is not None:
            _require(
                self.envelope.input.cid == self.spec.input_cid, "the input is not the committed one"
            )
        _require(self._output().cid == core.output_cid, "the output is not the committed one")
        return f"bundle {self.bundle.cid}"

    def node_signature(self) -> str:
        header = self.envelope.proof.header
        node = recover_address(header.digest(), header.signature)
        _require(node == header.node, "the proof was signed by another key than its node's")
        _require(node == self.bundle.metadata.core.node, "the metadata names another node")
        return f"signed by {node}"

    def model_attestation(self) -> str:
        manifest = self.bundle.manifest
        _require(manifest.model == self.spec.model, "the manifest is of another model")
        _require(
            model_digest(manifest.files) == self.spec.model.digest,
            "the manifest's files do not give the model's digest",
        )
        signer = recover_address(manifest.digest(), manifest.signature)
        _require(signer == manifest.signer, "the manifest's signature is not its signer's")
        return f"{manifest.model.name}: {len(manifest.files)} files, digest as in the task"

    def committee_signature(self) -> str:
        core, attestation = self.bundle.metadata.core, self.bundle.metadata.attestation
        _require(attestation.decision is Decision.ACCEPTED, "the committee did not accept")
        _require(attestation.task_id == self.spec.task_id, "the attestation is of another task")
        _require(attestation.node == core.node, "the attestation is of another node")
        _require(attestation.output_cid == core.output_cid, "the attestation is of another output")
        _require(attestation.proof_cid == core.proof_cid, "the attestation is of another proof")
        waived = attestation.basis is Basis.WAIVED
        _require(
            waived or attestation.confidence_ppm >= self.spec.review.min_confidence_ppm,
            "the attestation's confidence is under what the task demands",
        )
        if self.trusted is None:
            raise _NotMade("no committee keys at hand: give --committee FILE")
        committee = self.trusted.of(attestation.epoch)
        for seat in committee.seats:
            _require(
                check_seat_possession(seat.public, seat.account, seat.possession),
                f"seat {seat.index} has no valid proof of possession",
            )
        signers = verify_attestation(attestation, committee)
        who = f"{signers} of {len(committee.seats)} seats"
        if waived:
            return f"{who} (quorum {committee.quorum}) let it pass: not drawn for review"
        return (
            f"{who} accepted (quorum {committee.quorum}), "
            f"confidence {attestation.confidence_ppm / 1e6:.4f}"
        )

    def certified_block(self) -> str:
        metadata = self.bundle.metadata
        receipt, leaf = metadata.receipt, metadata.receipt.leaf
        token = token_id_of(self.spec.task_id)
        _require(leaf.kind == "settle", "the receipt is not of a settlement")
        _require(leaf.task_id == self.spec.task_id, "the receipt is of another task")
        _require(leaf.token_id == token, "the receipt mints another token")
        _require(leaf.node == metadata.core.node, "the receipt pays another node")
        _require(leaf.content == metadata.core.digest, "the metadata is not the settled one")
        _require(
            leaf.attestation == keccak256(metadata.attestation.canonical()),
            "the attestation is not the settled one",
        )
        _require(
            receipt.header.ledger_id == metadata.attestation.ledger_id,
            "the attestation is bound to another ledger",
        )
        if self.trusted is None:
            raise _NotMade("no committee keys at hand: give --committee FILE")
        verify_receipt(receipt, self.trusted)
        return f"settled in block {receipt.header.height}, token 0x{token.hex()[:16]}…"

    def review(self) -> str:
        return check_review(self.bundle.metadata, self.envelope.proof, self.trusted)

    def effect(self) -> str:
        effect = self.bundle.metadata.effect
        if effect is None:
            raise _NotMade("an action follows this step; its result is not in this bundle")
        _require(self.bundle.metadata.core.has_effect == 1, "no action belongs to this step")
        leaf, token = effect.receipt.leaf, token_id_of(self.spec.task_id)
        _require(leaf.kind == "effect" and leaf.token_id == token, "the effect's receipt is wrong")
        _require(
            leaf.content == Effect.digest_of(token, effect.value_json),
            "the effect's value is not the committed one",
        )
        _require(
            effect.receipt.header.ledger_id == self.bundle.metadata.attestation.ledger_id,
            "the effect is bound to another ledger",
        )
        if self.trusted is None:
            raise _NotMade("no committee keys at hand: give --committee FILE")
        verify_receipt(effect.receipt, self.trusted)
        return f"committed in block {effect.receipt.header.height}"

    def materials(self) -> str:
        """Every blob must be named by the input or the manifest: no unsigned byte in a bundle."""
        proof = self.envelope
        named = proof.input.data.decode("utf-8", "replace") if proof.input else ""
        hashes = {file.sha256 for file in self.bundle.manifest.files}
        for blob in proof.blobs:
            _require(
                cid_of(blob) in named or sha256(blob) in hashes,
                "a material in zk_proof.bin is not named by the input or the manifest",
            )
        _require(len(set(proof.blobs)) == len(proof.blobs), "a material is there twice")
        return f"{len(proof.blobs)} in the bundle" if proof.blobs else "none in the bundle"

    def proof(self) -> str:
        envelope = self.envelope
        blobs = {cid_of(blob): blob for blob in envelope.blobs} | dict(self.extra.blobs)
        materials = Materials(blobs=blobs, function=self.extra.function)
        claim = Claim(self.spec, envelope.input, self._output(), materials)
        verdict = verify_proof(claim, envelope.proof, self.reference, self.workdir)
        message = f"{envelope.proof.scheme}: {verdict.reason}"
        _require(verdict.outcome is not Outcome.INVALID, message)
        least = self.spec.review.min_confidence_ppm
        if verdict.outcome is not Outcome.VALID or verdict.confidence_ppm < least:
            raise _NotMade(message)  # cannot tell, or valid only as far as it could be checked
        return message


def verify_bundle(
    path: Path,
    *,
    committee: Committee | None = None,
    handovers: Iterable[Handover] = (),
    reference: Reference | None = None,
    materials: Materials | None = None,
    reader: Account | None = None,
    workdir: Path | None = None,
) -> Report:
    """Verify one bundle directory or CAR file.

    Args:
        committee: the trusted committee; without it signatures cannot be checked.
        handovers: from it on, for what later committees signed; they need no trust.
        reference: the auditor's own models; without it re-execution cannot be checked.
        materials: more materials (a corpus given by hand).
        reader: the account to which a sealed output was encrypted.
        workdir: where circuits are cached; a temporary folder when absent.
    """
    try:
        bundle = Bundle.read(path)
        metadata = bundle.metadata
    except BundleError as error:
        return Report(str(path), (Check("format", Status.FAILED, error.message),))
    try:
        trusted = Committees(committee, handovers) if committee is not None else None
    except EncodingError as error:
        return Report(str(path), (Check("handovers", Status.FAILED, str(error)),))
    with tempfile.TemporaryDirectory(prefix="daifi-verify-") as temporary:
        auditor = _Auditor(
            bundle,
            trusted,
            reference,
            materials or Materials(),
            reader,
            workdir or Path(temporary),
        )
        checks: list[Check] = []
        for name, check in auditor.steps():
            if name == "proof" and any(item.status is Status.FAILED for item in checks):
                # No model is loaded, and no prover run, for a stranger whose signatures are wrong.
                checks.append(Check(name, Status.NOT_MADE, "an earlier check failed"))
            else:
                checks.append(_run(name, check))
    return Report(
        path=str(path),
        checks=tuple(checks),
        token_id=token_id_of(metadata.core.spec.task_id),
        parents=metadata.core.spec.parents,
        name=metadata.core.name,
    )


def _run(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, Status.PASSED, check())
    except (_NotMade, UnknownEpoch) as missing:
        return Check(name, Status.NOT_MADE, str(missing))
    except (_Failed, BundleError, EncodingError, KeyMaterialError) as error:
        return Check(name, Status.FAILED, str(error))
    except DaifiError as error:
        return Check(name, Status.NOT_MADE, error.message)


def check_lineage(reports: Sequence[Report]) -> dict[bytes, list[bytes]]:
    """Parents that were not among the verified bundles, by token id."""
    known = {report.token_id for report in reports}
    return {
        report.token_id: missing
        for report in reports
        if report.token_id is not None
        and (missing := [parent for parent in report.parents if parent not in known])
    }
