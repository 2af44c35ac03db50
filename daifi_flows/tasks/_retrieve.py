"""``retrieve``: the passages of a corpus that are nearest to a question."""

from __future__ import annotations

import asyncio
from pathlib import Path

from daifi_flows._step import StepRequest
from daifi_flows.cnft import ComputeNFT, Materials
from daifi_flows.corpus import Corpus
from daifi_flows.errors import ConfigError
from daifi_flows.proofs import DEFAULT_SCHEME
from daifi_flows.ray_mesh.engines.retrieval import MAX_K, MAX_QUERY_CHARS
from daifi_flows.tasks._decorator import step_task
from daifi_flows.tasks._lineage import unwrap
from daifi_flows.tasks._run import Step
from daifi_flows.tasks._shipped import shipped
from daifi_flows.tasks._values import decode_passages

__all__ = ["check_question", "retrieve"]


def check_question(question: object) -> str:
    """The question as text.

    Raises:
        ConfigError: it is empty or not text.
    """
    if not isinstance(question, str):
        raise ConfigError(f"the question is a {type(question).__name__}: ask it as text")
    if not question.strip():
        raise ConfigError("the question is empty: ask something")
    return str(question)


@step_task(name="retrieve")
async def retrieve(
    question: str | ComputeNFT, corpus: str | Path | None = None, k: int = 4
) -> ComputeNFT:
    """Find the ``k`` passages of a folder that are nearest in meaning to a question.

    Proof ``digest``: the committee embeds the corpus and ranks it again. ``.output`` is a list of
    :class:`Passage`, best first.

    Args:
        question: text, or a cNFT whose output is text.
        corpus: folder of Markdown and text files; by default this project's own documentation.
        k: how many passages, 1 to 64.

    Raises:
        CorpusError: the folder is missing, empty, or holds no readable text.
        ConfigError: the question is empty or ``k`` is out of range. Nothing was spent.
    """
    query, parents = unwrap(question)
    query = check_question(query)
    if not 1 <= k <= MAX_K:
        raise ConfigError(f"k is {k}: ask for 1 to {MAX_K} passages")
    step = Step.begin("retrieve")
    if len(query) > MAX_QUERY_CHARS:
        step.logger.warning(
            "the question has %d characters: retrieval searches for the first %d",
            len(query),
            MAX_QUERY_CHARS,
        )
    folder = Path(corpus) if corpus is not None else shipped("docs")
    loaded = await asyncio.to_thread(_load, folder)
    if loaded.skipped:
        skipped = ", ".join(f"{count} {reason}" for reason, count in loaded.skipped.items())
        step.logger.info("corpus %s: files not read: %s", folder, skipped)
    step.logger.info(
        "corpus %s: %d passages, root 0x%s…", folder, len(loaded.chunks), loaded.root.hex()[:16]
    )
    return await step.run(
        StepRequest(
            name="retrieve",
            kind="retrieve",
            model=await asyncio.to_thread(step.fabric.embedding_model),
            input=step.input(
                {
                    "query": query[:MAX_QUERY_CHARS],
                    "k": k,
                    "corpus": loaded.root.hex(),
                    "corpus_cid": loaded.cid,
                }
            ),
            salt_key=step.key.salt_key,
            scheme=DEFAULT_SCHEME["retrieve"],
            parents=parents,
            materials=Materials(blobs={loaded.cid: loaded.blob()}),
            decode=decode_passages,
        )
    )


def _load(folder: Path) -> Corpus:
    corpus = Corpus.from_folder(folder)
    _ = corpus.root, corpus.cid  # hashing belongs to this thread too
    return corpus
