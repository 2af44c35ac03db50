"""``token-difr``: were these tokens sampled from this model, with this seed?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from daifi_flows.cnft import Execution, Proof, Sampling, Statement
from daifi_flows.encoding import canonical, decode_canonical
from daifi_flows.errors import EncodingError, ModelError
from daifi_flows.proofs._scheme import (
    Claim,
    Reference,
    Scores,
    Verdict,
    cannot_tell,
    invalid,
)
from daifi_flows.proofs._spans import Span, token_spans
from daifi_flows.proofs._tokens import (
    MAX_TOKENS_BYTES,
    Reading,
    Tokens,
    parse_tokens,
    read_tokens,
    refuses,
    tokens_of,
)
from daifi_flows.proofs.evidence import judge

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["TokenDifrScheme", "token_verdict"]


class TokenDifrScheme:
    """Token-DiFR (arXiv 2511.20621): the claimed tokens against one prefill of the model.

    Proves: the text is what the model of the spec gives for this prompt, sampler and seed, up to
    floating-point noise. The verifier applies the chat template itself, renders the text from the
    tokens itself, checks where the generation ended, prefills prompt and output once, and compares
    each claimed token's seed-noised logit with the best ones: a likelihood ratio decides
    (:mod:`~daifi_flows.proofs.evidence`), against what honest engines were measured to differ by
    (:mod:`~daifi_flows.proofs.calibration`). The task id covers sampling parameters, seed, input
    and model digest, and the digest covers weights, tokenizer and chat template: none can be
    swapped afterwards.

    Against whom: a node that runs other weights (another model, a quantised one), another prompt,
    sampler or seed, edits or cuts the text, or replays an answer, as long as verifiers are honest.
    An honest answer is invalid at most once in a million, as far as the calibration describes it.
    Cost: nothing for the node; one prefill for the verifier, about a twentieth of generating 300
    tokens (``python -m benchmarks proofs``). An answer of more than 256 tokens can be checked in
    parts of up to 256, each by a prefill up to its end.

    Does not prove: that the node computed rather than copied a right answer; which precision or
    hardware it used, where the tokens do not show it (int8 weights per channel under a bf16 claim:
    ``toploc`` tells them); anything over tokens that all models agree on. A node may swap a token
    for one within a near tie. Without a calibration of the model nobody is accused by statistics.
    The payload shows prompt and output tokens to whoever holds the proof.
    """

    name: ClassVar[str] = "token-difr"
    needs: ClassVar[frozenset[str]] = frozenset({"prompt_tokens", "output_tokens"})

    def refuses(self, sampling: Sampling | None) -> str | None:
        """Steps without sampling parameters."""
        return refuses(sampling)

    def spans(self, statement: Statement) -> tuple[Span, ...]:
        """One for every 256 output tokens begun."""
        return token_spans(statement.usage.output_tokens)

    def prove(self, claim: Claim, execution: Execution, workdir: Path) -> bytes:
        """The token ids, from ``execution.evidence["prompt_tokens"]`` and ``["output_tokens"]``.

        Raises:
            ProofError: the evidence is missing or out of bounds, or ``execution.usage`` counts
                other tokens.
        """
        del workdir
        return canonical(tokens_of(claim, execution, self.name).fields())

    def verify(
        self,
        claim: Claim,
        proof: Proof,
        reference: Reference | None,
        workdir: Path,
        span: Span | None = None,
    ) -> Verdict:
        """Template, text, ending, then the likelihood of the tokens by one prefill.

        Of a part: template, text and ending of the whole, then the part's tokens by one prefill up
        to its end.
        """
        del workdir
        try:
            tokens = _parse(proof.payload)
        except EncodingError as error:
            return invalid(f"the payload is malformed: {error}")
        reading = read_tokens(claim, proof.statement, tokens, reference, span)
        if isinstance(reading, Verdict):
            return reading
        assert reference is not None  # read_tokens refused
        return token_verdict(claim, reading, reference)


def token_verdict(claim: Claim, reading: Reading, reference: Reference) -> Verdict:
    """How the tokens were chosen: the statistical part, for every scheme on tokens."""
    try:
        calibration = reference.calibration(claim.spec)
    except ModelError as error:
        return cannot_tell(f"the tokens cannot be judged here: {error}")
    logits = reading.prefill.logits
    tokens, span = reading.output, reading.span
    if logits.ndim != 2 or logits.shape[1] <= max(tokens):
        return cannot_tell("the model here gave no logits for some of these tokens")
    finding = judge(
        logits, tokens, reading.sampling, calibration, first=span.start, parts=span.count
    )
    if finding is None:
        return cannot_tell("the model here gave no usable logits for these tokens")
    own, claimed = reading.own_answer(finding.best)
    scores = None
    if own is not None and claimed is not None and own.data != claimed.data:
        scores = _scores(logits, tokens, finding.best)
    return Verdict(finding.outcome, finding.confidence_ppm, finding.reason, own, claimed, scores)


def _scores(
    logits: NDArray[np.float32], tokens: Sequence[int], best: Sequence[int]
) -> Scores | None:
    """Log-softmax of ``logits`` ``[tokens, vocab]`` at the claimed tokens and at the own ones."""
    import numpy as np

    top = logits.max(axis=1)
    norms = top + np.log(np.exp(logits - top[:, None]).sum(axis=1, dtype=np.float64))
    places = np.arange(len(tokens))
    claimed, own = (logits[places, list(each)] - norms for each in (tokens, best))
    if not (np.isfinite(claimed).all() and np.isfinite(own).all()):
        return None
    return Scores(tuple(claimed.tolist()), tuple(own.tolist()))


def _parse(payload: bytes) -> Tokens:
    """Token ids of a payload.

    Raises:
        EncodingError: too long, not canonical, or not two lists of integers.
    """
    value = decode_canonical(payload, max_bytes=MAX_TOKENS_BYTES)
    if not isinstance(value, dict) or value.keys() != {"prompt_tokens", "output_tokens"}:
        raise EncodingError("it is not a map of prompt_tokens and output_tokens")
    return parse_tokens(value)
