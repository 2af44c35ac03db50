"""What every scheme on an LLM's tokens shares: their bytes, their bounds, and the checks that need
no statistics (template, text, ending, billing), up to the verifier's own prefill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from daifi_flows.cnft import Content, Execution, Sampling, Statement, TaskSpec
from daifi_flows.errors import EncodingError, ModelError, ProofError
from daifi_flows.proofs._scheme import Claim, Prefill, Reference, Verdict, cannot_tell, invalid
from daifi_flows.proofs._spans import MAX_SPANS, SPAN_TOKENS, Span

__all__ = [
    "MAX_OUTPUT_TOKENS",
    "MAX_PROMPT_TOKENS",
    "MAX_TOKENS_BYTES",
    "Reading",
    "Tokens",
    "parse_tokens",
    "read_tokens",
    "refuses",
    "tokens_of",
]

MAX_PROMPT_TOKENS: Final = 131_072
MAX_OUTPUT_TOKENS: Final = MAX_SPANS * SPAN_TOKENS
_MAX_TOKEN: Final = 1 << 20
"""Token ids lie below this; the largest vocabularies in use are near 2¹⁸."""
MAX_TOKENS_BYTES: Final = 64 + 5 * (MAX_PROMPT_TOKENS + MAX_OUTPUT_TOKENS)
"""A token id below 2²⁰ takes at most five bytes of DAG-CBOR."""


@dataclass(frozen=True)
class Tokens:
    """Token ids of an LLM step; the output's last is the end token unless the limit was reached."""

    prompt: list[int]
    output: list[int]

    def fields(self) -> dict[str, Any]:
        """Their part of a payload."""
        return {"prompt_tokens": self.prompt, "output_tokens": self.output}


@dataclass(frozen=True)
class Reading:
    """Claimed tokens that passed every check but the statistical ones.

    Attributes:
        span: the part of the output that is judged; the checks passed are of all of it.
        prefill: the verifier's own pass, up to the end of that part; a row for each of its tokens.
    """

    sampling: Sampling
    tokens: Tokens
    span: Span
    prefill: Prefill
    _claim: Claim
    _reference: Reference
    _ends: frozenset[int]

    @property
    def output(self) -> list[int]:
        """The claimed tokens of this part."""
        return self.tokens.output[self.span.start : self.span.stop]

    def prefill_again(self) -> Prefill | None:
        """See :meth:`Reference.prefill_again`; may raise as :meth:`Reference.prefill`."""
        prompt = _before(self.tokens, self.span)
        return self._reference.prefill_again(self._claim.spec, prompt, self.output)

    def own_answer(self, best: Sequence[int]) -> tuple[Content | None, Content | None]:
        """The verifier's output, from its ``best`` token at each position given the claimed ones
        before, up to where it would have ended; and what the node claims in its place. Nothing
        when they cannot be rendered."""
        last = next((i for i, token in enumerate(best) if token in self._ends), len(best) - 1)
        try:
            own = self._render(best[: last + 1])
            part = self.span.count > 1
            return own, self._render(self.output) if part else self._claim.output
        except (EncodingError, ModelError):
            return None, None

    def _render(self, tokens: Sequence[int]) -> Content:
        claim = self._claim
        assert claim.input is not None
        assert claim.output is not None
        return self._reference.render_output(
            claim.spec, claim.input, list(tokens), claim.output.salt
        )


def tokens_of(claim: Claim, execution: Execution, scheme: str) -> Tokens:
    """The tokens in ``execution.evidence``, under ``prompt_tokens`` and ``output_tokens``.

    Raises:
        ProofError: the evidence is missing or out of bounds, or ``execution.usage`` counts other
            tokens.
    """
    try:
        prompt = [int(token) for token in execution.evidence["prompt_tokens"]]
        output = [int(token) for token in execution.evidence["output_tokens"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ProofError(
            f"{scheme} needs the engine's prompt_tokens and output_tokens as evidence; this "
            "engine gave none: choose another scheme"
        ) from error
    tokens = Tokens(prompt, output)
    fault = _fault(claim.spec, tokens)
    usage = execution.usage
    if (usage.prompt_tokens, usage.output_tokens) != (len(prompt), len(output)):
        fault = fault or "usage does not count the tokens of the evidence"
    if fault is not None:
        raise ProofError(f"{scheme} cannot prove this execution: {fault}")
    return tokens


def parse_tokens(fields: Mapping[str, Any]) -> Tokens:
    """The tokens among the fields of a decoded payload; bounds are :func:`read_tokens`' business.

    Raises:
        EncodingError: they are not two lists of integers.
    """
    lists = (fields.get("prompt_tokens"), fields.get("output_tokens"))
    for tokens in lists:
        if not isinstance(tokens, list) or any(
            type(token) is not int for token in cast("list[Any]", tokens)
        ):
            raise EncodingError("tokens are not lists of integers")
    return Tokens(*cast("tuple[list[int], list[int]]", lists))


def read_tokens(
    claim: Claim,
    statement: Statement,
    tokens: Tokens,
    reference: Reference | None,
    span: Span | None = None,
) -> Reading | Verdict:
    """Bounds, billing, template, ending and text of all tokens, cheapest first, then one prefill up
    to the end of ``span`` (of the whole output without one).

    Returns:
        The verdict where a check fails or cannot be made; never raises for a node's bytes.
    """
    spec, input, output = claim.spec, claim.input, claim.output
    if fault := _fault(spec, tokens):
        return invalid(fault)
    counted = (statement.usage.prompt_tokens, statement.usage.output_tokens)
    if counted != (len(tokens.prompt), len(tokens.output)):
        return invalid("the statement bills other token counts than the payload shows")
    if input is None or output is None:
        return cannot_tell("the input or output is private and was not opened here")
    if reference is None:
        return cannot_tell("no model is at hand to prefill the tokens")
    if missing := reference.missing(spec, claim.materials):
        return cannot_tell(f"the tokens cannot be checked here: {missing}")
    try:
        honest_prompt = reference.prompt_tokens(spec, input)
    except (EncodingError, ModelError) as error:  # the buyer's input: nobody to accuse
        return cannot_tell(f"the prompt cannot be built here: {error}")
    if tokens.prompt != honest_prompt:
        return invalid("the prompt tokens are not what the chat template gives")
    assert spec.sampling is not None  # the envelope refused the rest
    try:
        ends = reference.end_tokens(spec)
        if fault := _ending_fault(tokens.output, ends, spec.sampling.max_tokens):
            return invalid(fault)
        rendered = reference.render_output(spec, input, tokens.output, output.salt)
        if (rendered.media_type, rendered.data) != (output.media_type, output.data):
            return invalid("the output is not what these tokens say")
        span = Span(0, 1, 0, len(tokens.output)) if span is None else span
        part = tokens.output[span.start : span.stop]
        prefill = reference.prefill(spec, _before(tokens, span), part)
    except EncodingError as error:  # the reference refuses the node's tokens
        return invalid(f"the model does not accept these tokens: {error}")
    except ModelError as error:
        return cannot_tell(f"the tokens cannot be checked here: {error}")
    return Reading(spec.sampling, tokens, span, prefill, claim, reference, ends)


def _before(tokens: Tokens, span: Span) -> list[int]:
    """What the model has read before the first token of ``span``."""
    return [*tokens.prompt, *tokens.output[: span.start]]


def refuses(sampling: Sampling | None) -> str | None:
    """Why tokens of a step with this sampler cannot be checked; ``None`` when they can."""
    return "the task has no sampling parameters" if sampling is None else None


def _fault(spec: TaskSpec, tokens: Tokens) -> str | None:
    prompt, output = tokens.prompt, tokens.output
    assert spec.sampling is not None  # the envelope refused the rest
    if not 1 <= len(prompt) <= MAX_PROMPT_TOKENS:
        return f"{len(prompt)} prompt tokens; 1 to {MAX_PROMPT_TOKENS} are allowed"
    limit = min(MAX_OUTPUT_TOKENS, spec.sampling.max_tokens)
    if not 1 <= len(output) <= limit:
        return f"{len(output)} output tokens; 1 to {limit} are allowed"
    if not all(0 <= token < _MAX_TOKEN for each in (prompt, output) for token in each):
        return f"a token id is not in 0 … {_MAX_TOKEN - 1}"
    return None


def _ending_fault(output: list[int], ends: frozenset[int], limit: int) -> str | None:
    if any(token in ends for token in output[:-1]):
        return "the output goes on after an end token"
    if output[-1] not in ends and len(output) != limit:
        return (
            f"the output stops after {len(output)} tokens without an end token; the limit is "
            f"{limit}"
        )
    return None
