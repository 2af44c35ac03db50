"""The vLLM engine against the transformers engine: each checks what the other ran.

One vLLM serves the module, as node and as verifier, with a KV cache and prompt chunks so small
that sixteen answers at once are read in parts and pushed out and computed again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from daifi_flows.cnft import Content, Execution, Materials, ModelRef, Sampling, TaskSpec
from daifi_flows.errors import EncodingError, EngineError, ModelError
from daifi_flows.keys import Account
from daifi_flows.proofs import Claim, Outcome, Verdict, make_proof, verify_proof
from daifi_flows.proofs.sampling import cutoffs, gumbel
from daifi_flows.ray_mesh import EngineReference, resolve
from daifi_flows.ray_mesh._adversary import quantize_int4
from daifi_flows.ray_mesh.engines._engine import Control, Engine, EngineDied, StepCancelled
from daifi_flows.ray_mesh.engines.transformers import TransformersEngine
from daifi_flows.ray_mesh.engines.vllm import VllmEngine
from daifi_flows.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

NODE = Account.from_seed(b"node")
SMALL = {
    "max_model_len": 1024,
    "max_num_batched_tokens": 128,
    "num_gpu_blocks_override": 40,
    "block_size": 32,
    "disable_log_stats": False,
}
SAMPLERS = {
    "greedy": Sampling(max_tokens=64),
    "sampled": Sampling(max_tokens=64, temperature_ppm=800_000, seed=11),
    "cut": Sampling(max_tokens=64, temperature_ppm=800_000, seed=12, top_k=40, top_p_ppm=900_000),
}


def conversation(text: str) -> Content:
    value = {"messages": [{"role": "user", "content": text}], "context_tokens": 900}
    return Content.json_value(value, salt=bytes(32))


STORY = conversation("Write a long story about a lighthouse keeper and the sea.")


@dataclass
class Bench:
    """Both engines, both verifiers, and specs for them."""

    vllm: VllmEngine
    home: Path
    refs: dict[str, ModelRef] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.engines: dict[str, Engine] = {
            "vllm": self.vllm,
            "transformers": TransformersEngine(self.home / "models"),
        }
        self.verifiers = {
            "transformers": EngineReference(Settings(), self.home),
            "vllm": EngineReference(Settings(verifier_engine="vllm"), self.home),
        }
        self.verifiers["vllm"]._engines["vllm"] = self.vllm  # one vLLM serves both sides
        self.refs = {name: resolve("smollm2-135m-instruct", name).ref for name in self.engines}
        self.answer = cache(self._answer)

    def spec(
        self,
        content: Content,
        sampling: Sampling,
        engine: str = "vllm",
        scheme: str = "toploc",
    ) -> TaskSpec:
        return TaskSpec(
            kind="reason",
            model=self.refs[engine],
            input_cid=content.cid,
            sampling=sampling,
            scheme=scheme,
            max_price_wei=10**18,
            deadline_ms=2**50,
            buyer=NODE.address,
            nonce=bytes(32),
        )

    def _answer(
        self, engine: str, sampling: Sampling, content: Content = STORY, scheme: str = "toploc"
    ) -> Execution:
        spec = self.spec(content, sampling, engine, scheme)
        return self.engines[engine].run(spec, content, Materials(), Control())

    def verdict(
        self, done: Execution, engine: str, verifier: str, sampling: Sampling, scheme: str
    ) -> Verdict:
        spec = self.spec(STORY, sampling, engine, scheme)
        claim = Claim(spec, STORY, done.output)
        proof = make_proof(claim, done, NODE, self.home)
        return verify_proof(claim, proof, self.verifiers[verifier], self.home)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    pytest.importorskip("vllm")
    home = tmp_path_factory.mktemp("vllm")
    engine = VllmEngine(home / "models", SMALL)
    yield Bench(engine, home)
    engine.close()


@pytest.mark.parametrize("scheme", ["token-difr", "toploc"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    ("engine", "verifier"), [("vllm", "transformers"), ("transformers", "vllm"), ("vllm", "vllm")]
)
def test_what_one_engine_says_the_other_verifies(
    bench: Bench, engine: str, verifier: str, sampler: str, scheme: str
) -> None:
    sampling = SAMPLERS[sampler]
    done = bench.answer(engine, sampling)
    verdict = bench.verdict(done, engine, verifier, sampling, scheme)
    assert verdict.outcome is Outcome.VALID, verdict.reason


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_both_engines_draw_the_same_tokens_up_to_a_near_tie(bench: Bench, sampler: str) -> None:
    sampling = SAMPLERS[sampler]
    one, other = (
        bench.answer(engine, sampling).evidence["output_tokens"] for engine in bench.engines
    )
    differing = [at for at, pair in enumerate(zip(one, other, strict=False)) if len({*pair}) > 1]
    if not differing:
        assert one == other
        return
    first = differing[0]  # from here on the two write different texts
    spec = bench.spec(STORY, sampling)
    reference = bench.verifiers["transformers"]
    prompt = reference.prompt_tokens(spec, STORY)
    logits = reference.prefill(spec, prompt, one[: first + 1]).logits[first]
    scores = logits.copy()
    if sampling.temperature_ppm:
        scores += sampling.temperature_ppm / 1e6 * gumbel(sampling.seed, first, len(logits))
        scores[logits < cutoffs(logits, sampling, (0.5,))[0]] = -np.inf
    assert scores.max() - scores[[one[first], other[first]]].min() < 0.5


def preemptions() -> float:
    import prometheus_client

    return sum(
        sample.value
        for family in prometheus_client.REGISTRY.collect()
        for sample in family.samples
        if sample.name == "vllm:num_preemptions_total"
    )


def test_sixteen_answers_at_once_keep_their_hidden_states_apart(bench: Bench) -> None:
    before = preemptions()
    asked = [conversation(f"Write a long story about the number {n}.") for n in range(16)]
    samplings = [Sampling(max_tokens=96, temperature_ppm=900_000, seed=n) for n in range(16)]

    def run(number: int) -> Execution:
        # Every fourth one asks for nothing to be kept.
        scheme = "token-difr" if number % 4 == 3 else "toploc"
        spec = bench.spec(asked[number], samplings[number], scheme=scheme)
        return bench.vllm.run(spec, asked[number], Materials(), Control())

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(run, range(16)))
    assert preemptions() > before
    assert bench.vllm.held() == (0, 0)
    for number, done in enumerate(answers):
        rows = done.evidence.get("activations")
        if number % 4 == 3:
            assert rows is None
            continue
        prompt, output = done.evidence["prompt_tokens"], done.evidence["output_tokens"]
        spec = bench.spec(asked[number], samplings[number])
        honest = bench.verifiers["transformers"].prefill(spec, prompt, output).hidden
        assert honest is not None
        assert rows.shape == honest.shape == (len(output), 576)
        assert rows.dtype == np.float32
        near = unit(rows) @ unit(honest).T
        assert near.diagonal().min() > 0.99
        assert (near.argmax(1) == np.arange(len(output))).all()


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_cancelled_step_leaves_nothing_in_the_worker(bench: Bench) -> None:
    sampling = Sampling(max_tokens=800, temperature_ppm=3_000_000)
    spec = bench.spec(STORY, sampling)
    for delay in (0.0, 0.3, 0.8):
        cancelled = threading.Event()
        threading.Timer(delay, cancelled.set).start()
        with pytest.raises(StepCancelled):
            bench.vllm.run(spec, STORY, Materials(), Control(cancelled))
        assert bench.vllm.held() == (0, 0)
    again = bench.vllm.run(
        bench.spec(STORY, SAMPLERS["greedy"]), STORY, Materials(), Control()
    ).evidence
    first = bench.answer("vllm", SAMPLERS["greedy"]).evidence
    assert again["output_tokens"] == first["output_tokens"]
    assert bench.vllm.held() == (0, 0)


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_answers_of_one_token(bench: Bench, engine: str) -> None:
    one = bench.answer(engine, Sampling(max_tokens=1))
    assert len(one.evidence["output_tokens"]) == len(one.evidence["activations"]) == 1
    assert one.output.value()["finish"] == "length"
    # A seed whose noise lifts the end token over all others, by 2.4 logits.
    ends = Sampling(max_tokens=8, temperature_ppm=4_000_000, seed=33_543)
    ended = bench.answer(engine, ends, conversation("Say nothing."))
    assert ended.evidence["output_tokens"] == [2]
    assert ended.output.value() | {"prompt_tokens": 0} == {
        "text": "",
        "finish": "stop",
        "prompt_tokens": 0,
        "dropped_passages": [],
        "dropped_messages": 0,
        "question_tokens_dropped": 0,
    }


def test_the_context_is_filled_to_its_end_and_no_further(bench: Bench) -> None:
    def filling(context: int) -> Content:
        text = " ".join(["sea"] * 2000)
        value = {"messages": [{"role": "user", "content": text}], "context_tokens": context}
        return Content.json_value(value)

    full = filling(1024)
    sampling = Sampling(max_tokens=24, temperature_ppm=5_000_000)
    done = bench.vllm.run(bench.spec(full, sampling), full, Materials(), Control())
    prompt, output = done.evidence["prompt_tokens"], done.evidence["output_tokens"]
    assert (len(prompt), len(output)) == (1000, 24)
    spec = bench.spec(full, sampling)
    honest = bench.verifiers["transformers"].prefill(spec, prompt, output)
    found = bench.verifiers["vllm"].prefill(spec, prompt, output)
    assert found.logits.shape == honest.logits.shape == (24, 49_152)
    assert np.abs(found.logits - honest.logits).mean() < 0.5
    # The model could read more than this process has room for: the prompt is not cut here, for
    # the verifier would build another one.
    over = filling(1100)
    with pytest.raises(EngineError, match="1024 tokens of context"):
        bench.vllm.run(bench.spec(over, sampling), over, Materials(), Control())
    with pytest.raises(ModelError, match="too many"):
        bench.verifiers["vllm"].prefill(spec, [*prompt, *output], [5, 5])


def test_a_prefill_refuses_tokens_the_model_does_not_have(bench: Bench) -> None:
    spec = bench.spec(STORY, SAMPLERS["greedy"])
    verifier = bench.verifiers["vllm"]
    for prompt, output in (([5], [49_152]), ([-1], [5]), ([], [5]), ([5], [])):
        with pytest.raises(EncodingError):
            verifier.prefill(spec, prompt, output)
    alone = verifier.prefill(spec, [5], [6])
    assert alone.logits.shape == (1, 49_152)
    assert alone.hidden is not None
    assert alone.hidden.shape == (1, 576)
    assert bench.vllm.held() == (0, 0)


@pytest.mark.parametrize("scheme", ["token-difr", "toploc"])
def test_quantised_weights_on_one_engine_are_caught_by_the_other(bench: Bench, scheme: str) -> None:
    if "int4" not in bench.engines:
        bench.engines["int4"] = TransformersEngine(bench.home / "models", quantize_int4)
        bench.refs["int4"] = bench.refs["transformers"]
    done = bench.answer("int4", SAMPLERS["sampled"])
    verdict = bench.verdict(done, "int4", "vllm", SAMPLERS["sampled"], scheme)
    assert verdict.outcome is Outcome.INVALID, verdict.reason


def test_when_vllm_dies_the_node_restarts_and_the_verifier_cannot_tell(bench: Bench) -> None:
    import psutil

    spec = bench.spec(STORY, SAMPLERS["greedy"])
    for child in psutil.Process().children(recursive=True):
        if "EngineCore" in " ".join(child.cmdline()) or "EngineCore" in child.name():
            child.kill()
    with pytest.raises(EngineDied):
        bench.vllm.run(spec, STORY, Materials(), Control())
    with pytest.raises(ModelError, match="starts anew"):
        bench.verifiers["vllm"].prefill(spec, [5], [6])
    assert "vllm" not in bench.verifiers["vllm"]._engines
