"""``reason``: a language model answers a question from what an earlier step found."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from daifi_flows._step import StepRequest
from daifi_flows.cnft import ComputeNFT, Sampling
from daifi_flows.errors import ConfigError
from daifi_flows.proofs import DEFAULT_SCHEME
from daifi_flows.tasks._decorator import step_task
from daifi_flows.tasks._lineage import unwrap
from daifi_flows.tasks._retrieve import check_question
from daifi_flows.tasks._run import Step
from daifi_flows.tasks._values import Answer, as_passages

__all__ = ["reason"]


@step_task(name="reason")
async def reason(
    question: str | ComputeNFT,
    context: ComputeNFT | Sequence[ComputeNFT | str] | str,
    model: str | None = None,
    engine: str | None = None,
    max_tokens: int | None = None,
    scheme: str = DEFAULT_SCHEME["reason"],
) -> ComputeNFT:
    """Answer a question from context with a language model, citing passage ids.

    Proof ``token-difr``: the committee prefills the claimed tokens once and measures how far each
    lies under the best one; ``toploc`` compares the activations too. ``.output`` is an
    :class:`Answer`: text, with what was trimmed.

    Args:
        question: text, or a cNFT whose output is text.
        context: the cNFT of ``retrieve``, several of them, or plain texts.
        model: a known name, a local folder or GGUF file, or a hub id; by default the settings'.
        engine: ``transformers`` or ``vllm``; by default the settings'.
        max_tokens: longest answer, in tokens; by default the settings'.
        scheme: proof scheme, ``token-difr`` or ``toploc``.

    Raises:
        ModelError, EngineError: unknown or not at hand.
        ConfigError: the question is empty, there is no context, the budget does not fit, or the
            engine cannot give that proof. Nothing was spent.
    """
    (query, given), parents = unwrap((question, context))
    query, passages = check_question(query), as_passages(given)
    step = Step.begin("reason")
    settings = step.fabric.settings
    budget = settings.max_tokens if max_tokens is None else max_tokens
    if not 1 <= budget < settings.context_tokens:
        raise ConfigError(
            f"max_tokens is {budget}: give 1 to {settings.context_tokens - 1}, or raise "
            "context_tokens in the settings"
        )
    ref = await asyncio.to_thread(step.fabric.resolve_llm, model, engine)
    nft = await step.run(
        StepRequest(
            name="reason",
            kind="reason",
            model=ref,
            input=step.input(
                {
                    "question": query,
                    "passages": [{"id": item["id"], "text": item["text"]} for item in passages],
                    "context_tokens": settings.context_tokens,
                }
            ),
            salt_key=step.key.salt_key,
            scheme=scheme,
            sampling=Sampling(
                temperature_ppm=settings.temperature_ppm,
                seed=settings.seed,
                max_tokens=budget,
                top_k=settings.top_k,
                top_p_ppm=settings.top_p_ppm,
            ),
            parents=parents,
            decode=partial(Answer.decode, question=query, given=passages),
        )
    )
    if isinstance(nft.output, Answer) and nft.output.trimmed:
        step.logger.warning(
            "%s (context_tokens is %d)", nft.output.trimmed, settings.context_tokens
        )
    return nft
