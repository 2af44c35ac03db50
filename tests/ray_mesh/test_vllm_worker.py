"""What of the vLLM engine works without vLLM: the worker extension records rows of hidden states
from a runner that schedules as vLLM may; a machine without vLLM says so."""

from __future__ import annotations

import asyncio
import importlib.util
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from daifi_flows.cnft import Content, Materials, ModelRef, TaskSpec
from daifi_flows.errors import EngineError
from daifi_flows.ray_mesh import EngineReference
from daifi_flows.ray_mesh._models import LocalModel
from daifi_flows.ray_mesh.engines import _vllm_server
from daifi_flows.ray_mesh.engines._engine import Control
from daifi_flows.ray_mesh.engines._vllm_server import VllmServer
from daifi_flows.ray_mesh.engines._vllm_worker import PREFILL, RECORD, Watch
from daifi_flows.ray_mesh.engines.vllm import VllmEngine
from daifi_flows.settings import Settings

WIDTH = 3


def hidden(request: int, position: int) -> list[float]:
    """The hidden state of one position of one request: no two are equal."""
    return [float(request), float(position), float(request * 1000 + position)]


@dataclass
class Request:
    """As ``CachedRequestState``."""

    number: int
    prompt: int
    answer: int
    extra: dict[str, Any] | None
    num_computed_tokens: int = 0
    output_token_ids: list[int] = field(default_factory=list)

    @property
    def sampling_params(self) -> Any:
        return SimpleNamespace(extra_args=self.extra)

    @property
    def total(self) -> int:
        return self.prompt + len(self.output_token_ids)


class Runner:
    """The parts of vLLM's model runner that the extension touches."""

    def __init__(self, requests: dict[str, Request]) -> None:
        self.requests = requests
        self.input_batch = SimpleNamespace(req_ids=[])
        self.query_start_loc = SimpleNamespace(np=np.zeros(64, np.int32))
        self.execute_model_state: Any = None
        self.device = "cpu"
        self.model = self
        self.watch: Watch | None = None

    def compute_logits(self, rows: torch.Tensor) -> torch.Tensor:
        """An output layer whose input is twice the forward pass's output."""
        assert self.watch is not None
        self.watch.keep(None, ("head", rows * 2), {})
        return torch.cat((rows, -rows), 1)

    def execute(self, scheduled: dict[str, int]) -> None:
        self.input_batch.req_ids = list(scheduled)
        rows: list[list[float]] = []
        for index, (name, count) in enumerate(scheduled.items()):
            request = self.requests[name]
            begin = request.num_computed_tokens
            rows += [hidden(request.number, begin + step) for step in range(count)]
            self.query_start_loc.np[index + 1] = len(rows)
        states = torch.tensor([*rows, [9.0] * WIDTH])  # one row of padding
        last = states[[int(end) - 1 for end in self.query_start_loc.np[1 : len(scheduled) + 1]]]
        self.compute_logits(last)
        self.execute_model_state = SimpleNamespace(
            scheduler_output=SimpleNamespace(num_scheduled_tokens=scheduled), hidden_states=states
        )

    def sample_tokens(self, grammar_output: Any) -> Any:
        scheduled = self.execute_model_state.scheduler_output.num_scheduled_tokens
        self.execute_model_state = None
        sampled: list[list[int]] = []
        for name, count in scheduled.items():
            request = self.requests[name]
            done = request.num_computed_tokens + count == request.total
            sampled.append([7] if done else [])
            request.output_token_ids += sampled[-1]
        return SimpleNamespace(req_ids=list(scheduled), sampled_token_ids=sampled)


def watched(requests: dict[str, Request], *, answers: bool = True) -> tuple[Runner, Watch]:
    runner = Runner(requests)
    watch = runner.watch = Watch(runner, answers=answers)
    return runner, watch


def step(runner: Runner, watch: Watch, scheduled: dict[str, int]) -> None:
    runner.execute(scheduled)
    before = {name: runner.requests[name].num_computed_tokens for name in scheduled}
    watch.sample_tokens(None)
    for name, count in scheduled.items():  # the scheduler, before the next step
        runner.requests[name].num_computed_tokens = before[name] + count


def matrix(data: bytes, rows: int) -> np.ndarray:
    return np.frombuffer(data, np.float32).reshape(rows, -1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9))
def test_whatever_the_schedule_each_request_has_its_own_rows_once(seed: int) -> None:
    draw = random.Random(seed)
    requests: dict[str, Request] = {}
    for number in range(draw.randint(1, 6)):
        prompt, answer = draw.randint(1, 9), draw.randint(1, 6)
        kind = draw.choice(["record", "prefill", "plain", "none"])
        extra: dict[str, Any] | None = {"other": 1}
        if kind == "record":
            extra = {RECORD: f"key{number}"}
        elif kind == "prefill":
            first = draw.randint(0, prompt - 1)
            extra, answer = {PREFILL: [f"key{number}", first, prompt - 1]}, 1
        elif kind == "none":
            extra = None
        requests[f"r{number}"] = Request(number, prompt, answer, extra)
    runner, watch = watched(requests)

    def going() -> list[str]:
        return [name for name, r in requests.items() if len(r.output_token_ids) < r.answer]

    while going():
        names = draw.sample(going(), draw.randint(1, len(going())))  # any order, some wait
        for name in names:
            if draw.random() < 0.15:
                requests[name].num_computed_tokens = 0  # preempted: its KV cache was given away
        left = {name: requests[name].total - requests[name].num_computed_tokens for name in names}
        step(runner, watch, {name: draw.randint(1, left[name]) for name in names})

    for name, request in requests.items():
        asked = request.extra or {}
        if RECORD in asked:
            taken = watch.rows.take(asked[RECORD])
            first = request.prompt - 1
            expected = [hidden(request.number, first + t) for t in range(request.answer)]
            scale = 2  # what the output layer multiplied
        elif PREFILL in asked:
            key, first, last = asked[PREFILL]
            taken = watch.rows.take(key)
            expected = [hidden(request.number, at) for at in range(first, last + 1)]
            scale = 1
        else:
            continue
        assert taken.fault == "", name
        assert (
            matrix(b"".join(taken.rows), len(expected)).tolist()
            == (np.array(expected) * scale).tolist()
        )
    assert (len(watch.rows), watch.rows.held_bytes) == (0, 0)


def test_scores_are_the_output_layers_over_the_kept_rows() -> None:
    runner, watch = watched({"r": Request(3, 5, 1, {PREFILL: ["key", 2, 4]})})
    step(runner, watch, {"r": 5})
    fault, seen, logits = watch.score("key", 1, 3)
    expected = np.array([hidden(3, 3), hidden(3, 4)])
    assert fault == ""
    assert matrix(seen, 2).tolist() == (expected * 2).tolist()
    assert matrix(logits, 2).tolist() == np.concatenate((expected, -expected), 1).tolist()
    assert "only 3" in watch.score("key", 1, 4)[0]
    assert "nothing was kept" in watch.score("else", 0, 1)[0]


def test_ranks_that_do_not_answer_keep_what_all_must_score_and_no_more() -> None:
    runner, watch = watched(
        {
            "generation": Request(0, 2, 1, {RECORD: "a"}),
            "prefill": Request(1, 2, 1, {PREFILL: ["b", 0, 1]}),
        },
        answers=False,
    )
    step(runner, watch, {"generation": 2, "prefill": 2})
    assert watch.rows.get("a").fault
    assert watch.score("b", 0, 2) == ("", b"", b"")


def test_a_prefill_that_began_in_the_prefix_cache_is_a_fault() -> None:
    request = Request(0, 6, 1, {PREFILL: ["key", 1, 5]}, num_computed_tokens=4)
    runner, watch = watched({"r": request})
    step(runner, watch, {"r": 2})
    assert watch.score("key", 0, 5)[0]


def test_a_layer_that_shows_something_else_is_a_fault() -> None:
    runner, watch = watched({"r": Request(0, 2, 2, {RECORD: "key"})})
    runner.execute({"r": 2})
    watch.keep(None, ("head", torch.zeros(2, WIDTH)), {})  # two rows for one request
    watch.sample_tokens(None)
    assert "one hidden state per request" in watch.rows.take("key").fault


def test_several_tokens_in_a_step_are_a_fault() -> None:
    runner, watch = watched({"r": Request(0, 2, 2, {RECORD: "key"})})
    runner.execute({"r": 2})
    output = SimpleNamespace(req_ids=["r"], sampled_token_ids=[[7, 8]])
    watch._sample = lambda _grammar: output
    watch.sample_tokens(None)
    assert "several tokens" in watch.rows.take("key").fault


def test_an_aborted_request_leaves_nothing_and_does_not_come_back() -> None:
    runner, watch = watched({"r": Request(0, 2, 9, {RECORD: "key"})})
    step(runner, watch, {"r": 2})
    step(runner, watch, {"r": 1})
    watch.rows.take("key")
    step(runner, watch, {"r": 1})
    assert (len(watch.rows), watch.rows.held_bytes) == (0, 0)


def test_runners_that_cannot_be_watched_say_why() -> None:
    runner = Runner({})
    states = {"speculative_config": None, "use_async_scheduling": False}
    for change, why in (
        ({"speculative_config": object()}, "speculative"),
        ({"use_async_scheduling": True}, "asynchronous"),
    ):
        vars(runner).update(states | change)
        assert why in Watch(runner, answers=True).fault()
    del runner.execute_model_state
    assert "V2" in Watch(runner, answers=True).fault()


def test_a_node_without_vllm_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tiny_ref: ModelRef,
    make_spec: Callable[..., TaskSpec],
    ask: Callable[..., Content],
) -> None:
    real = importlib.util.find_spec

    def find(name: str, *rest: Any) -> Any:
        return None if name == "vllm" else real(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    spec = make_spec(tiny_ref.model_copy(update={"engine": "vllm"}), ask())
    with pytest.raises(EngineError, match="make vllm"):
        VllmEngine(tmp_path).run(spec, ask(), Materials(), Control())
    verifier = EngineReference(Settings(verifier_engine="vllm"), tmp_path)
    assert "make vllm" in (verifier.missing(spec, Materials()) or "")


def test_a_worker_ends_with_the_process_that_started_vllm() -> None:
    import psutil

    owner = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    code = (
        "import sys, threading\n"
        "from daifi_flows.ray_mesh.engines import _vllm_worker as worker\n"
        "worker._OWNER_POLL_S = 0.05\n"
        "worker.end_with(int(sys.argv[1]), float(sys.argv[2]))\n"
        "print([t.name for t in threading.enumerate()], flush=True)\n"
        "sys.stdin.read()\n"
    )

    def worker(born: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, str(owner.pid), repr(born)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    born = psutil.Process(owner.pid).create_time()
    here, elsewhere = worker(born), worker(born - 60)  # the same number, on another machine
    try:
        assert here.stdout is not None
        assert elsewhere.stdout is not None
        assert "daifi-owner" in here.stdout.readline()
        assert "daifi-owner" not in elsewhere.stdout.readline()
        assert here.poll() is None
        owner.kill()  # not yet waited for: a zombie is gone too
        assert here.wait(60) == 1
        assert elsewhere.poll() is None
    finally:
        for process in (owner, here, elsewhere):
            process.kill()
            process.communicate()


def test_whoever_waits_for_a_server_that_is_closed_is_told() -> None:
    """A seat's thread once waited for ever when another thread closed the engine under it."""

    async def endless() -> None:
        begun.set()
        await asyncio.Event().wait()

    def wait() -> None:
        try:
            server._call(endless(), None)
        except EngineError as error:
            told.append(str(error))

    begun, told = threading.Event(), list[str]()
    server = VllmServer.__new__(VllmServer)
    server._engine = SimpleNamespace(shutdown=lambda: None)
    server._begin()
    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    assert begun.wait(60.0)
    server.close()
    waiting.join(60.0)
    assert not waiting.is_alive()
    assert told == ["vLLM was stopped while it ran this step"]
    assert not server._thread.is_alive()
    server.close()
    with pytest.raises(EngineError, match="was stopped here"):
        server._call(endless(), None)


def test_a_closed_engine_starts_no_vllm_that_nobody_would_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_ref: ModelRef
) -> None:
    """One thread closes the engine after vLLM's end while another is about to ask it."""
    started = list[str]()

    class Server:
        def __init__(self, *_: Any) -> None:
            started.append("vllm")

    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: object())
    monkeypatch.setattr(_vllm_server, "VllmServer", Server)
    verifier = EngineReference(Settings(verifier_engine="vllm"), tmp_path)
    engine = verifier._vllm()
    verifier._forget(engine)
    with pytest.raises(EngineError, match="was stopped"):
        engine.prefill(LocalModel(tiny_ref, (), tmp_path), [1], [2])
    assert not started
    assert verifier._vllm() is not engine
