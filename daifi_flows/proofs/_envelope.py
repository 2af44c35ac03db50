"""Making and checking a whole proof: the statement, the node's signature, then the scheme."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from daifi_flows.cnft import Content, Execution, Materials, Proof, Statement, TaskSpec, proof_digest
from daifi_flows.encoding import keccak256
from daifi_flows.errors import DaifiError, KeyMaterialError, ProofError
from daifi_flows.keys import Account, recover_address
from daifi_flows.proofs._registry import get_scheme
from daifi_flows.proofs._scheme import Outcome, Reference, Verdict

__all__ = ["MAX_PAYLOAD_BYTES", "make_proof", "verify_proof"]

MAX_PAYLOAD_BYTES: Final = 1024 * 1024
"""Largest payload of any scheme, in bytes: proofs travel in ledgers and bundles. Schemes bound
their own payloads more tightly."""

_log = logging.getLogger(__name__)


def make_proof(
    spec: TaskSpec,
    input: Content,
    execution: Execution,
    materials: Materials,
    account: Account,
    workdir: Path,
) -> Proof:
    """Prove that ``execution`` answers ``spec`` on ``input``, signed by the node's ``account``.

    Args:
        workdir: the scheme's cache (circuits, keys); shared by concurrent provers.

    Raises:
        ProofError: the input is not the spec's, the scheme is unknown, or it cannot prove this
            execution.
    """
    if input.cid != spec.input_cid:
        raise ProofError("the input's content id is not the one the spec names")
    scheme = get_scheme(spec.scheme)
    transcript, payload = scheme.prove(spec, input, execution, materials, workdir)
    if len(transcript) != 32 or len(payload) > MAX_PAYLOAD_BYTES:
        raise ProofError(
            f"scheme {spec.scheme!r} made a transcript of {len(transcript)} bytes and a payload of "
            f"{len(payload)}; the limits are 32 and {MAX_PAYLOAD_BYTES}"
        )
    statement = Statement(
        task_id=spec.task_id,
        model_digest=spec.model.digest,
        input_cid=spec.input_cid,
        output_cid=execution.output.cid,
        transcript=transcript,
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


def verify_proof(
    spec: TaskSpec,
    input: Content | None,
    output: Content | None,
    proof: Proof,
    materials: Materials,
    reference: Reference | None,
    workdir: Path,
) -> Verdict:
    """Check a stranger's proof: what holds for every scheme first, then the scheme's own checks.

    ``input`` and ``output`` are ``None`` when they are private and the caller has no key;
    ``reference`` is ``None`` when the model is not at hand.

    Returns:
        A verdict for any proof whatsoever. ``INVALID`` accuses the node; trouble on this side
        (no model, an engine that fails, an unknown scheme) is ``CANNOT_TELL``.
    """
    fault = _generic_fault(spec, input, output, proof)
    if fault is not None:
        return Verdict(Outcome.INVALID, 0, fault)
    try:
        scheme = get_scheme(spec.scheme)
        return scheme.verify(spec, input, output, proof, materials, reference, workdir)
    except DaifiError as error:
        return Verdict(Outcome.CANNOT_TELL, 0, str(error))
    except Exception as error:  # a verifier must outlive whatever its engine raises
        _log.exception("scheme %s failed while verifying", spec.scheme)
        return Verdict(
            Outcome.CANNOT_TELL, 0, f"verification failed here: {type(error).__name__}: {error}"
        )


def _generic_fault(
    spec: TaskSpec, input: Content | None, output: Content | None, proof: Proof
) -> str | None:
    """What is wrong with the envelope, whatever the scheme; ``None`` when nothing is."""
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
    try:
        signer = recover_address(proof.header.digest(), proof.signature)
    except KeyMaterialError as error:
        return f"the node's signature is malformed: {error}"
    if signer != proof.node:
        return "the signature was not made by the node the proof names"
    return None
