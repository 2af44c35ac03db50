"""``token-difr``: were these tokens sampled from this model, with this seed?"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Final, cast

from daifi_flows.cnft import Content, Execution, Proof, TaskSpec
from daifi_flows.encoding import canonical, decode_canonical
from daifi_flows.errors import EncodingError, ModelError, ProofError
from daifi_flows.proofs._scheme import Claim, Outcome, Reference, Verdict
from daifi_flows.proofs.margins import decide, margins

__all__ = ["MAX_OUTPUT_TOKENS", "MAX_PROMPT_TOKENS", "TokenDifrScheme"]

MAX_PROMPT_TOKENS: Final = 131_072
MAX_OUTPUT_TOKENS: Final = 16_384
_MAX_TOKEN: Final = 1 << 20
"""Token ids lie below this; the largest vocabularies in use are near 2¹⁸."""
_MAX_PAYLOAD: Final = 64 + 5 * (MAX_PROMPT_TOKENS + MAX_OUTPUT_TOKENS)
"""A token id below 2²⁰ takes at most five bytes of DAG-CBOR."""


class TokenDifrScheme:
    """Token-DiFR (arXiv 2511.20621): the claimed tokens against one prefill of the model.

    Proves: the text is what the model of the spec gives for this prompt, sampler and seed, up to
    floating-point noise. The verifier applies the chat template itself, renders the text from the
    tokens itself, checks where the generation ended, prefills prompt and output once, and measures
    at each position how far the claimed token's seed-noised logit lies under the best one.

    Against whom: a node that runs other weights (another model, a quantised one), another prompt,
    sampler or seed, edits or cuts the text, or replays an answer, as long as verifiers are honest.
    Cost: nothing for the node; one prefill for the verifier (SmolLM2 on two CPU cores, 96 tokens
    after prompts of 430 and 739: 0.6 and 0.9 s, against 4.3 and 5.4 s of generating).

    Does not prove: that the node computed rather than copied a right answer; which precision or
    hardware it used, where the tokens do not show it (int8 per channel looks honest over 64
    tokens); anything over tokens that all models agree on. A node may swap a token for one within
    a near tie. The payload shows prompt and output tokens to whoever holds the proof.
    """

    name: ClassVar[str] = "token-difr"
    needs: ClassVar[frozenset[str]] = frozenset({"prompt_tokens", "output_tokens"})

    def prove(self, claim: Claim, execution: Execution, workdir: Path) -> bytes:
        """The token ids, from ``execution.evidence["prompt_tokens"]`` and ``["output_tokens"]``.

        Raises:
            ProofError: the spec has no sampling, the evidence is missing or out of bounds, or
                ``execution.usage`` counts other tokens.
        """
        del workdir
        spec = claim.spec
        try:
            prompt = [int(token) for token in execution.evidence["prompt_tokens"]]
            output = [int(token) for token in execution.evidence["output_tokens"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ProofError(
                "token-difr needs the engine's prompt_tokens and output_tokens as evidence; this "
                "engine gave none: choose another scheme"
            ) from error
        payload = canonical({"prompt_tokens": prompt, "output_tokens": output})
        fault = _token_fault(spec, prompt, output)
        usage = execution.usage
        if (usage.prompt_tokens, usage.output_tokens) != (len(prompt), len(output)):
            fault = fault or "usage does not count the tokens of the evidence"
        if fault is not None:
            raise ProofError(f"token-difr cannot prove this execution: {fault}")
        return payload

    def verify(
        self, claim: Claim, proof: Proof, reference: Reference | None, workdir: Path
    ) -> Verdict:
        """Template, text, ending, then the margins of one prefill on ``reference``."""
        del workdir
        spec, input, output, materials = claim.spec, claim.input, claim.output, claim.materials
        statement = proof.statement
        try:
            prompt_tokens, output_tokens = _parse(proof.payload)
        except EncodingError as error:
            return _invalid(f"the payload is malformed: {error}")
        if fault := _token_fault(spec, prompt_tokens, output_tokens):
            return _invalid(fault)
        counted = (statement.usage.prompt_tokens, statement.usage.output_tokens)
        if counted != (len(prompt_tokens), len(output_tokens)):
            return _invalid("the statement bills other token counts than the payload shows")
        if input is None or output is None:
            return _cannot_tell("the input or output is private and was not opened here")
        if reference is None:
            return _cannot_tell("no model is at hand to prefill the tokens")
        if missing := reference.missing(spec, materials):
            return _cannot_tell(f"the tokens cannot be checked here: {missing}")
        try:
            honest_prompt = reference.prompt_tokens(spec, input)
        except (EncodingError, ModelError) as error:  # the buyer's input: nobody to accuse
            return _cannot_tell(f"the prompt cannot be built here: {error}")
        if prompt_tokens != honest_prompt:
            return _invalid("the prompt tokens are not what the chat template gives")
        try:
            return _against(spec, input, output, prompt_tokens, output_tokens, reference)
        except EncodingError as error:  # the reference refuses the node's tokens
            return _invalid(f"the model does not accept these tokens: {error}")
        except ModelError as error:
            return _cannot_tell(f"the tokens cannot be checked here: {error}")


def _against(
    spec: TaskSpec,
    input: Content,
    output: Content,
    prompt_tokens: list[int],
    output_tokens: list[int],
    reference: Reference,
) -> Verdict:
    sampling = spec.sampling
    assert sampling is not None  # _token_fault refused the rest
    ends = reference.end_tokens(spec)
    if any(token in ends for token in output_tokens[:-1]):
        return _invalid("the output goes on after an end token")
    if output_tokens[-1] not in ends and len(output_tokens) != sampling.max_tokens:
        return _invalid(
            f"the output stops after {len(output_tokens)} tokens without an end token; the limit "
            f"is {sampling.max_tokens}"
        )
    rendered = reference.render_output(spec, input, output_tokens, output.salt)
    if (rendered.media_type, rendered.data) != (output.media_type, output.data):
        return _invalid("the output is not what these tokens say")
    found = margins(
        reference.prefill(spec, prompt_tokens, output_tokens).logits,
        output_tokens,
        temperature_ppm=sampling.temperature_ppm,
        seed=sampling.seed,
    )
    if found is None:
        return _cannot_tell("the model here gave no usable logits for these tokens")
    own = _own_answer(found.best, ends)
    again = (
        rendered if own == output_tokens else reference.render_output(spec, input, own, output.salt)
    )
    finding = decide(found.margins)
    return Verdict(finding.outcome, finding.confidence_ppm, finding.reason, again)


def _own_answer(best: list[int], ends: frozenset[int]) -> list[int]:
    """The verifier's teacher-forced tokens, up to where it would have ended."""
    for index, token in enumerate(best):
        if token in ends:
            return best[: index + 1]
    return best


def _parse(payload: bytes) -> tuple[list[int], list[int]]:
    """Token ids of a payload.

    Raises:
        EncodingError: too long, not canonical, or not two lists of integers in range.
    """
    value = decode_canonical(payload, max_bytes=_MAX_PAYLOAD)
    if not isinstance(value, dict) or value.keys() != {"prompt_tokens", "output_tokens"}:
        raise EncodingError("it is not a map of prompt_tokens and output_tokens")
    fields = cast("dict[str, Any]", value)
    lists = (fields["prompt_tokens"], fields["output_tokens"])
    for tokens in lists:
        if not isinstance(tokens, list) or any(
            type(token) is not int for token in cast("list[Any]", tokens)
        ):
            raise EncodingError("tokens are not lists of integers")
    return lists


def _token_fault(spec: TaskSpec, prompt: list[int], output: list[int]) -> str | None:
    if spec.sampling is None:
        return "the spec has no sampling parameters"
    if not 1 <= len(prompt) <= MAX_PROMPT_TOKENS:
        return f"{len(prompt)} prompt tokens; 1 to {MAX_PROMPT_TOKENS} are allowed"
    limit = min(MAX_OUTPUT_TOKENS, spec.sampling.max_tokens)
    if not 1 <= len(output) <= limit:
        return f"{len(output)} output tokens; 1 to {limit} are allowed"
    if not all(0 <= token < _MAX_TOKEN for tokens in (prompt, output) for token in tokens):
        return f"a token id is not in 0 … {_MAX_TOKEN - 1}"
    return None


def _invalid(reason: str) -> Verdict:
    return Verdict(Outcome.INVALID, 0, reason)


def _cannot_tell(reason: str) -> Verdict:
    return Verdict(Outcome.CANNOT_TELL, 0, reason)
