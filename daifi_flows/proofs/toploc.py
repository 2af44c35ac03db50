"""``toploc``: were these tokens sampled from this model, and computed by it?"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Final, cast

import numpy as np

from daifi_flows.cnft import Execution, Proof, Sampling, Statement
from daifi_flows.encoding import canonical, decode_canonical
from daifi_flows.errors import EncodingError, ModelError, ProofError
from daifi_flows.proofs._fingerprint import (
    CHUNK_BYTES,
    CHUNK_ROWS,
    ChunkErrors,
    check_form,
    chunks_of,
    compare,
    fingerprint,
)
from daifi_flows.proofs._scheme import Claim, Outcome, Reference, Verdict, cannot_tell, invalid
from daifi_flows.proofs._spans import Span, token_spans
from daifi_flows.proofs._tokens import (
    MAX_OUTPUT_TOKENS,
    MAX_TOKENS_BYTES,
    Reading,
    Tokens,
    parse_tokens,
    read_tokens,
    refuses,
    tokens_of,
)
from daifi_flows.proofs.activations import ActivationFinding, judge_activations
from daifi_flows.proofs.token_difr import token_verdict

__all__ = ["ToplocScheme"]

_MAX_PAYLOAD: Final = MAX_TOKENS_BYTES + CHUNK_BYTES * chunks_of(MAX_OUTPUT_TOKENS) + 64
_KEYS: Final = frozenset({"prompt_tokens", "output_tokens", "fingerprints"})


class ToplocScheme:
    """Activation fingerprints (TOPLOC, arXiv 2501.16007) on top of every check of ``token-difr``.

    Proves: what ``token-difr`` proves, and that the last hidden states which gave the tokens are
    those of the spec's weights on this prompt and output, up to rounding. The fingerprints are of
    the node's own generating passes; the verifier compares them with the hidden states of the one
    prefill that it scores the tokens with. Activations alone would not say how tokens were chosen:
    a node could write with a small model and prefill with the right one.

    Against whom: as ``token-difr``, and sooner: where other weights choose nearly the same tokens,
    as int8 per channel does, the activations still differ in every chunk. Cost: 258 bytes for every
    32 tokens; building them takes the node 0.3 to 0.4 ms for 32 tokens, comparing takes the
    verifier 0.1 to 0.3 ms beside the prefill (width 576 to 4096, one core). An answer noisier than
    most costs the verifier a second prefill, by another attention kernel: about one honest answer
    in forty.

    Does not prove: what ``token-difr`` does not. A node that wrote with quantised weights can still
    prefill its answer with the right ones, which costs it less than generating, and fingerprint
    that: then only the choice of tokens tells.
    """

    name: ClassVar[str] = "toploc"
    needs: ClassVar[frozenset[str]] = frozenset({"prompt_tokens", "output_tokens", "activations"})

    def refuses(self, sampling: Sampling | None) -> str | None:
        """Steps without sampling parameters."""
        return refuses(sampling)

    def spans(self, statement: Statement) -> tuple[Span, ...]:
        """One for every 256 output tokens begun."""
        return token_spans(statement.usage.output_tokens)

    def prove(self, claim: Claim, execution: Execution, workdir: Path) -> bytes:
        """The token ids, and fingerprints of ``execution.evidence["activations"]``.

        Raises:
            ProofError: see :class:`~daifi_flows.proofs.token_difr.TokenDifrScheme`; or the
                activations are missing, not one row a token, or not finite.
        """
        del workdir
        tokens = tokens_of(claim, execution, self.name)
        given = execution.evidence.get("activations")
        if given is None:
            raise ProofError(
                "toploc needs the engine's activations as evidence; this engine gave none: choose "
                "token-difr"
            )
        try:
            rows = np.asarray(given, np.float32)
            if rows.ndim != 2 or len(rows) != len(tokens.output):
                raise EncodingError(f"shape {rows.shape} is not one row for each output token")
            prints = fingerprint(rows)
        except (EncodingError, TypeError, ValueError) as error:
            raise ProofError(f"toploc cannot prove these activations: {error}") from error
        return canonical({**tokens.fields(), "fingerprints": prints})

    def verify(
        self,
        claim: Claim,
        proof: Proof,
        reference: Reference | None,
        workdir: Path,
        span: Span | None = None,
    ) -> Verdict:
        """All of ``token-difr``'s checks, then the fingerprints against the same prefill.

        Of a part: its tokens, and the fingerprints of its hidden states.
        """
        del workdir
        try:
            tokens, prints = _parse(proof.payload)
        except EncodingError as error:
            return invalid(f"the payload is malformed: {error}")
        reading = read_tokens(claim, proof.statement, tokens, reference, span)
        if isinstance(reading, Verdict):
            return reading
        assert reference is not None  # read_tokens refused
        chosen = token_verdict(claim, reading, reference)
        if chosen.outcome is Outcome.INVALID:
            return chosen
        found = _activations(claim, reading, prints, reference)
        return found if isinstance(found, Verdict) else _worse(chosen, found)


def _activations(
    claim: Claim, reading: Reading, prints: bytes, reference: Reference
) -> ActivationFinding | Verdict:
    hidden = reading.prefill.hidden
    if hidden is None:
        return cannot_tell("the engine here shows no activations to compare the fingerprints with")
    span = reading.span
    if hidden.ndim != 2 or len(hidden) != span.stop - span.start:
        return cannot_tell("the model here gave no usable activations for these tokens")
    try:
        calibration = reference.calibration(claim.spec)
        first = span.start // CHUNK_ROWS  # parts begin with a chunk
        part = prints[CHUNK_BYTES * first : CHUNK_BYTES * chunks_of(span.stop)]
        errors = compare(part, hidden)
    except (EncodingError, ModelError) as error:  # the fingerprints' form was checked before
        return cannot_tell(f"the activations cannot be compared here: {error}")

    def again() -> ChunkErrors | None:
        try:
            second = reading.prefill_again()
            if second is None or second.hidden is None:
                return None
            return compare(fingerprint(second.hidden), hidden)
        except (EncodingError, ModelError):  # the first look then has to do
            return None

    bounds = None if calibration is None else calibration.activations
    return judge_activations(errors, bounds, again, first=first, parts=span.count)


def _worse(chosen: Verdict, found: ActivationFinding) -> Verdict:
    """Both findings in one: valid only when both are."""
    order = (Outcome.VALID, Outcome.CANNOT_TELL, Outcome.INVALID)
    return Verdict(
        max(chosen.outcome, found.outcome, key=order.index),
        min(chosen.confidence_ppm, found.confidence_ppm),
        f"{chosen.reason}; {found.reason}",
        chosen.reexecuted,
        chosen.claimed,
    )


def _parse(payload: bytes) -> tuple[Tokens, bytes]:
    """Token ids and fingerprints of a payload.

    Raises:
        EncodingError: too long, not canonical, fields missing or of another kind, or not one
            well-formed fingerprint for every 32 output tokens.
    """
    value = decode_canonical(payload, max_bytes=_MAX_PAYLOAD)
    if not isinstance(value, dict) or value.keys() != _KEYS:
        raise EncodingError("it is not a map of prompt_tokens, output_tokens and fingerprints")
    fields = cast("dict[str, Any]", value)
    prints = fields["fingerprints"]
    if not isinstance(prints, bytes):
        raise EncodingError("fingerprints are not bytes")
    tokens = parse_tokens(fields)
    check_form(prints, len(tokens.output))
    return tokens, prints
