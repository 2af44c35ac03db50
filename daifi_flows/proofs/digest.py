"""``digest``: the output's commitment, checked by running the step again (Π = H(f(x)))."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Final

from daifi_flows.cnft import PPM, Content, Execution, Proof, Sampling, Statement
from daifi_flows.encoding import decode_canonical_json
from daifi_flows.errors import EncodingError, ModelError
from daifi_flows.proofs._compare import Match, compare_json
from daifi_flows.proofs._scheme import Claim, Outcome, Reference, Verdict, cannot_tell, invalid
from daifi_flows.proofs._spans import WHOLE, Span

__all__ = ["DigestScheme"]

_JSON: Final = "application/json"
_TOLERANT_PPM: Final = 999_000
"""Confidence when the outputs agree within tolerance but not to the byte."""
_MAX_GROWTH: Final = 25
"""JSON that agrees within tolerance is at most so much longer: only numbers may differ, a float
takes at most 24 characters, and it stands for one of at least one."""


class DigestScheme:
    """Re-execution against a commitment.

    Proves: nothing by itself. It binds the node, by its signature, to one output for the task; a
    verifier with the model, corpus or function runs the step again and compares. Bytes must be
    equal; JSON is compared by value, floats within 1e-6 relative and cosine scores (integers under
    ``score_ppm`` or ``scores_ppm``) within 2,000 ppm, because BLAS kernels differ between machines
    (see :mod:`daifi_flows.proofs._compare`).

    Against whom: any node, as long as verifiers re-execute honestly. Cost: nothing for the node
    (the payload is empty), one full execution for every verifier.

    Does not prove: that the node did the work itself rather than copying a right answer; anything
    to a verifier without the model; anything about a step that is not deterministic. A node can
    shift scores, and swap passages whose scores are that close, within the tolerance.
    """

    name: ClassVar[str] = "digest"
    needs: ClassVar[frozenset[str]] = frozenset()

    def refuses(self, sampling: Sampling | None) -> str | None:
        """Nothing: no sampler takes part."""
        del sampling

    def spans(self, statement: Statement) -> tuple[Span, ...]:
        """One: the output is checked as a whole."""
        del statement
        return (WHOLE,)

    def prove(self, claim: Claim, execution: Execution, workdir: Path) -> bytes:
        """Nothing: the envelope commits to the output."""
        del claim, execution, workdir
        return b""

    def verify(
        self,
        claim: Claim,
        proof: Proof,
        reference: Reference | None,
        workdir: Path,
        span: Span | None = None,
    ) -> Verdict:
        """Run the step again on ``reference`` and compare with ``output``."""
        del workdir, span
        if proof.payload:
            return invalid("a digest proof has no payload, this one has")
        spec, input, output, materials = claim.spec, claim.input, claim.output, claim.materials
        if input is None or output is None:
            return cannot_tell("the input or output is private and was not opened here")
        if reference is None:
            return cannot_tell("no model is at hand to run the step again")
        if missing := reference.missing(spec, materials):
            return cannot_tell(f"the step cannot be run again here: {missing}")
        try:
            again = reference.reexecute(spec, input, materials)
        except ModelError as error:
            return cannot_tell(f"the step cannot be run again here: {error}")
        match, where = _compare(output, again)
        if match is Match.EXACT:
            return Verdict(Outcome.VALID, PPM, "re-execution gives the same bytes", again, output)
        if match is Match.WITHIN:
            return Verdict(
                Outcome.VALID, _TOLERANT_PPM, "re-execution agrees within tolerance", again, output
            )
        if match is Match.UNCLEAR:
            return Verdict(Outcome.CANNOT_TELL, PPM // 2, f"a near tie: {where}", again, output)
        reason = f"re-execution gives another output: {where}"
        return Verdict(Outcome.INVALID, 0, reason, again, output)


def _compare(claimed: Content, again: Content) -> tuple[Match, str]:
    if claimed.media_type != again.media_type:
        return Match.DIFFERENT, f"media type {claimed.media_type!r}, not {again.media_type!r}"
    if claimed.data == again.data:
        return Match.EXACT, ""
    if claimed.media_type != _JSON:
        return Match.DIFFERENT, f"{len(claimed.data)} bytes differ from {len(again.data)}"
    if len(claimed.data) > _MAX_GROWTH * len(again.data):
        return Match.DIFFERENT, f"{len(claimed.data)} bytes cannot agree with {len(again.data)}"
    try:
        value: Any = decode_canonical_json(claimed.data)
    except EncodingError as error:
        return Match.DIFFERENT, str(error)
    return compare_json(value, decode_canonical_json(again.data))
