"""An accepted result on its way into a bundle: on disk from before it is settled."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import Field

from daifi_flows._review_text import report_text
from daifi_flows._step import StepRequest
from daifi_flows.bundle import (
    MAX_REPORT_CHARS,
    METADATA_FORMAT,
    Bundle,
    Effect,
    Metadata,
    ProofFile,
    manifest_bytes,
    report_digest,
)
from daifi_flows.cnft import (
    Attestation,
    Content,
    CoreMetadata,
    Noun,
    Raw,
    Receipt,
    ReviewRequest,
    Uint,
    token_id_of,
)
from daifi_flows.encoding import cid_of
from daifi_flows.errors import ConfigError, EncodingError
from daifi_flows.keys import Account, seal_box

if TYPE_CHECKING:
    from daifi_flows.judges import ReviewReport

__all__ = ["Draft", "draft_of", "read_draft"]

MAX_DISCLOSED_BYTES: Final = 2 * 1024 * 1024
"""Materials up to this size travel in the bundle, so that an auditor can re-execute the step."""


class Draft(Noun):
    """An accepted result, on disk before it is settled: all of the bundle but what comes then."""

    core: CoreMetadata
    attestation: Attestation
    committed: Receipt | None = None
    report_json: Annotated[str, Field(max_length=MAX_REPORT_CHARS)] | None = None
    output: Content
    output_file: Raw
    manifest_file: Raw
    proof_bytes: Uint
    proof_file: Raw
    directory: Annotated[str, Field(max_length=4096)]
    """Where the bundle goes."""

    def bundle(self, receipt: Receipt, effect: Effect | None) -> Bundle:
        """The bundle, once there is a receipt of the settlement."""
        metadata = Metadata(
            format=METADATA_FORMAT,
            core=self.core,
            attestation=self.attestation,
            receipt=receipt,
            committed=self.committed,
            report_json=self.report_json,
            effect=effect,
        )
        return Bundle.build(metadata, self.proof_file, self.output_file, self.manifest_file)


def draft_of(
    step: StepRequest,
    review: ReviewRequest,
    attestation: Attestation,
    report: ReviewReport,
    *,
    buyer: Account,
    timestamp_ms: int,
    bundles: Path,
) -> Draft:
    """What a step comes to that the committee has accepted.

    Args:
        review: what the committee was asked.
        buyer: whose key output and proof are sealed with, when the step asks for that.
        bundles: the folder that holds the bundle's own.
    """
    spec, result = review.spec, review.result
    report_json = report_text(report)
    blobs = tuple(step.materials.blobs.values())
    disclosed = () if sum(map(len, blobs)) > MAX_DISCLOSED_BYTES else blobs
    envelope = ProofFile(proof=result.proof, input=review.input, blobs=disclosed)
    output_file, proof_file = result.output.canonical(), envelope.canonical()
    if step.encrypt:
        output_file = seal_box(buyer.box_public, output_file)
        proof_file = seal_box(buyer.box_public, proof_file)
    manifest = manifest_bytes(result.manifest)
    core = CoreMetadata(
        name=step.name,
        spec=spec,
        node=result.proof.node,
        usage=result.proof.statement.usage,
        timestamp_ms=timestamp_ms,
        output_cid=result.output.cid,
        output_encryption="x25519-sealed-box" if step.encrypt else "none",
        output_file_cid=cid_of(output_file),
        proof_cid=result.proof.cid,
        proof_file_cid=cid_of(proof_file),
        manifest_cid=cid_of(manifest),
        report=report_digest(spec.task_id, report_json),
        operator=review.operator,
        has_effect=int(step.effect is not None),
    )
    folder = re.sub(r"[^\w-]+", "-", step.name).strip("-") or "step"
    directory = bundles / f"{folder}-{token_id_of(spec.task_id).hex()[:12]}"
    return Draft(
        core=core,
        attestation=attestation,
        committed=review.committed,
        report_json=report_json,
        output=result.output,
        output_file=output_file,
        manifest_file=manifest,
        proof_bytes=len(result.proof.canonical()),
        proof_file=proof_file,
        directory=str(directory.absolute()),
    )


def read_draft(path: Path) -> Draft:
    """A draft on disk.

    Raises:
        ConfigError: it is damaged or cannot be read.
    """
    try:
        return Draft.from_canonical(path.read_bytes())
    except (OSError, EncodingError) as error:
        raise ConfigError(f"the accepted result in {path} is damaged: {error}") from error
