"""Making and checking a whole proof: the statement, the node's signature, then the scheme."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Final

from daifi_flows.cnft import Execution, Proof, ProofHeader, Statement, proof_digest
from daifi_flows.encoding import keccak256, tagged_hash
from daifi_flows.errors import DaifiError, KeyMaterialError, ProofError
from daifi_flows.keys import Account, recover_address
from daifi_flows.proofs._registry import get_scheme
from daifi_flows.proofs._scheme import Claim, Reference, Verdict, cannot_tell, invalid
from daifi_flows.proofs._spans import MAX_SPANS, WHOLE, Span

__all__ = ["MAX_PAYLOAD_BYTES", "make_proof", "spans_of", "transcript_of", "verify_proof"]

MAX_PAYLOAD_BYTES: Final = 1024 * 1024
"""Largest payload of any scheme, in bytes: proofs travel in ledgers and bundles. Schemes bound
their own payloads more tightly."""

_log = logging.getLogger(__name__)


def make_proof(claim: Claim, execution: Execution, account: Account, workdir: Path) -> Proof:
    """Prove that ``execution`` answers ``claim``, signed by the node's ``account``.

    Args:
        workdir: the scheme's cache (circuits, keys); shared by concurrent provers.

    Raises:
        ProofError: the input is not the spec's, the scheme is unknown, or it cannot prove this
            execution.
    """
    spec = claim.spec
    if claim.input is None or claim.input.cid != spec.input_cid:
        raise ProofError("the input's content id is not the one the spec names")
    if claim.output is not None and claim.output != execution.output:
        raise ProofError("the claimed output is not the execution's")
    scheme = get_scheme(spec.scheme)
    if missing := sorted(scheme.needs - execution.evidence.keys()):
        raise ProofError(
            f"{spec.scheme} needs {' and '.join(missing)} of the engine as evidence; "
            f"{spec.model.engine} gave none: choose another scheme"
        )
    if fault := scheme.refuses(spec.sampling):
        raise ProofError(f"{spec.scheme} cannot prove this step: {fault}")
    payload = scheme.prove(replace(claim, output=execution.output), execution, workdir)
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ProofError(
            f"scheme {spec.scheme!r} made a payload of {len(payload)} bytes; the limit is "
            f"{MAX_PAYLOAD_BYTES}"
        )
    statement = Statement(
        task_id=spec.task_id,
        model_digest=spec.model.digest,
        input_cid=spec.input_cid,
        output_cid=execution.output.cid,
        transcript=transcript_of(spec.scheme, spec.task_id, execution.output.cid, payload),
        usage=execution.usage,
    )
    digest = proof_digest(spec.scheme, statement, keccak256(payload), account.address)
    return Proof(
        scheme=spec.scheme,
        statement=statement,
        payload=payload,
        node=account.address,
        signature=account.sign(digest),
    )


def spans_of(proof: Proof | ProofHeader) -> tuple[Span, ...]:
    """The parts in which a stranger's proof can be checked, in order; at least one, at most 64.

    Checking all of them is checking the whole, whatever the proof: what is malformed is so in every
    part. The token schemes have one for every 256 output tokens begun, the others one in all. They
    follow from what the node signed: the header tells them, too.
    """
    try:
        spans = get_scheme(proof.scheme).spans(proof.statement)
    except Exception:  # not known here, or a scheme that chokes on this proof: verifying says so
        return (WHOLE,)
    return spans if 1 <= len(spans) <= MAX_SPANS else (WHOLE,)


def verify_proof(
    claim: Claim,
    proof: Proof,
    reference: Reference | None,
    workdir: Path,
    span: Span | None = None,
) -> Verdict:
    """Check a stranger's proof: what holds for every scheme first, then the scheme's own checks.

    Args:
        reference: ``None`` when the model is not at hand.
        span: one of :func:`spans_of`, to check only that part of the output; ``None`` for all of
            it, which costs more at once and weighs the evidence of all parts together.

    Returns:
        A verdict for any proof whatsoever. ``INVALID`` accuses the node; trouble on this side
        (no model, an engine that fails, an unknown scheme) is ``CANNOT_TELL``.
    """
    fault = _generic_fault(claim, proof)
    if fault is not None:
        return invalid(fault)
    try:
        scheme = get_scheme(proof.scheme)
        if fault := scheme.refuses(claim.spec.sampling):
            return cannot_tell(f"{proof.scheme} cannot prove such a step: {fault}")
        if span is not None:
            spans = spans_of(proof)
            if span not in spans:
                return cannot_tell("the part that was asked for is not one of this output's")
            if len(spans) == 1:
                span = None
        return scheme.verify(claim, proof, reference, workdir, span)
    except DaifiError as error:
        return cannot_tell(str(error))
    except Exception as error:  # a verifier must outlive whatever its engine raises
        _log.exception("scheme %s failed while verifying", proof.scheme)
        return cannot_tell(f"verification failed here: {type(error).__name__}: {error}")


def transcript_of(scheme: str, task_id: bytes, output_cid: str, payload: bytes) -> bytes:
    """32 bytes that bind a payload to its scheme, task and output.

    ``keccak256("daifi/transcript/1" ‖ dag-cbor(fields))``: a payload lifted from another proof has
    another transcript, whatever the scheme makes of its bytes.
    """
    return tagged_hash(
        "daifi/transcript/1",
        {"scheme": scheme, "task_id": task_id, "output_cid": output_cid, "payload": payload},
    )


def _generic_fault(claim: Claim, proof: Proof) -> str | None:
    """What is wrong with the envelope, whatever the scheme; ``None`` when nothing is."""
    spec, input, output = claim.spec, claim.input, claim.output
    statement = proof.statement
    if len(proof.payload) > MAX_PAYLOAD_BYTES:
        return f"the payload of {len(proof.payload)} bytes is over {MAX_PAYLOAD_BYTES}"
    if proof.scheme != spec.scheme:
        return f"the proof is of scheme {proof.scheme!r}, the task asks for {spec.scheme!r}"
    if statement.task_id != spec.task_id:
        return "the proof was made for another task"
    if statement.model_digest != spec.model.digest:
        return "the proof names another model digest than the task"
    if statement.input_cid != spec.input_cid:
        return "the proof names another input than the task"
    if input is not None and input.cid != statement.input_cid:
        return "the input is not the one the proof and the task name"
    if output is not None and output.cid != statement.output_cid:
        return "the output is not the one the proof names"
    if statement.transcript != transcript_of(
        proof.scheme, statement.task_id, statement.output_cid, proof.payload
    ):
        return "the transcript does not commit to this payload"
    try:
        signer = recover_address(proof.header.digest(), proof.signature)
    except KeyMaterialError as error:
        return f"the node's signature is malformed: {error}"
    if signer != proof.node:
        return "the signature was not made by the node the proof names"
    return None
