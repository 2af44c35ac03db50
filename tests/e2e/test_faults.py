"""Processes die in the middle of a step: the step completes or is refunded, the books are right."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray

from daifi_flows import Fabric, Settings, StepFailed, verify_bundle
from daifi_flows._home import read_step
from daifi_flows._step import StepEvent, StepRequest, StepState
from daifi_flows.bundle import Bundle
from daifi_flows.cnft import ComputeNFT, Content, Materials, Sampling, token_id_of
from daifi_flows.errors import BundleError, ConfigError, DaifiError, EncodingError
from daifi_flows.ledger import TaskState, audit
from daifi_flows.verify import Status

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fabric(ray_cluster: None, settings: Settings) -> Iterator[Fabric]:
    """A fabric of its own: what dies here is nobody else's."""
    with Fabric.local(settings) as fabric:
        yield fabric


def request(fabric: Fabric, key: bytes, max_tokens: int = 48, **changes: Any) -> StepRequest:
    """An LLM step that runs for a second or more."""
    fields: dict[str, Any] = {
        "name": "reason",
        "kind": "reason",
        "model": fabric.resolve_llm(),
        "input": Content.json_value(
            {
                "question": "What happens to a node that is rejected?",
                "passages": [{"id": "a", "text": "A rejected node loses a quarter of its stake."}],
                "context_tokens": 512,
            },
            salt=key,
        ),
        "salt_key": key,
        "scheme": "token-difr",
        "sampling": Sampling(max_tokens=max_tokens),
    }
    return StepRequest(**(fields | changes))


def node_pid(fabric: Fabric) -> int:
    """Process of the fabric's node."""
    (node,) = asyncio.run(fabric.mesh.nodes())
    return asyncio.run(fabric.mesh.health(node, 60)).pid


def asked(call: Callable[[], Any]) -> Any:
    """The reply of an actor that may be restarting: it is asked again until it is up."""
    until = time.monotonic() + 60
    while True:
        try:
            return ray.get(call(), timeout=60)
        except ray.exceptions.ActorUnavailableError:
            if time.monotonic() > until:
                raise
        time.sleep(0.2)


def host_pid(fabric: Fabric) -> int:
    """Process of the seat host."""
    return asked(fabric._parts.hosts[0].ping.remote)["pid"]


def ledger_pid(fabric: Fabric) -> int:
    """Process of the ledger actor."""
    return asked(fabric.settlement.handle.pid.remote)


def balance(fabric: Fabric) -> int:
    """The buyer's, rounded up to a thousandth of a DAi: fees are far below that."""
    wei = asyncio.run(fabric.settlement.account(fabric.buyer.address)).balance_wei
    return -(-wei // 10**15) * 10**15


@pytest.mark.parametrize(
    ("victim", "state", "delay_s"),
    [
        (node_pid, StepState.EXECUTING, 0.5),
        (host_pid, StepState.REVIEWING, 0.2),
        (ledger_pid, StepState.EXECUTING, 0.3),
        (ledger_pid, StepState.REVIEWING, 0.0),
    ],
    ids=[
        "node while it runs",
        "seat host in review",
        "ledger while a node runs",
        "ledger in review",
    ],
)
def test_a_killed_process_does_not_lose_the_step(
    fabric: Fabric, victim: Callable[[Fabric], int], state: StepState, delay_s: float
) -> None:
    pid = victim(fabric)
    killed = threading.Event()

    def kill() -> None:
        time.sleep(delay_s)
        os.kill(pid, signal.SIGKILL)
        killed.set()

    def watch(event: StepEvent) -> None:
        if event.state is state and not killed.is_set():
            threading.Thread(target=kill).start()

    before = balance(fabric)
    fabric.add_observer(watch)
    key = os.urandom(32)
    nft: ComputeNFT | None = None
    try:
        nft = asyncio.run(fabric.run(request(fabric, key)))
    except DaifiError as error:
        assert isinstance(error, StepFailed), error
    finally:
        fabric.remove_observer(watch)
    assert killed.wait(10)
    assert victim(fabric) != pid
    if nft is not None:
        token = asyncio.run(fabric.settlement.token(nft.token_id))
        assert token is not None
        assert balance(fabric) == before - fabric.settings.price_wei
    else:
        assert balance(fabric) == before
    report = audit(fabric._parts.home.ledger)
    assert report.supply.conserved
    assert report.supply.escrows_wei == 0


def test_a_step_run_again_under_its_key_is_not_paid_again(fabric: Fabric) -> None:
    key = os.urandom(32)
    first = asyncio.run(fabric.run(request(fabric, key, max_tokens=8)))
    between = balance(fabric)
    again = asyncio.run(fabric.run(request(fabric, key, max_tokens=8)))
    assert again.token_id == first.token_id
    assert again.bundle_cid == first.bundle_cid
    assert balance(fabric) == between


def test_cancelling_stops_the_node_and_refunds(
    fabric: Fabric, eventually: Callable[..., None]
) -> None:
    before = balance(fabric)
    key = os.urandom(32)
    story = {"role": "user", "content": "Write a long story about a lighthouse."}
    step = request(
        fabric,
        key,
        max_tokens=400,
        input=Content.json_value({"messages": [story], "context_tokens": 512}, salt=key),
    )
    running = threading.Event()

    def watch(event: StepEvent) -> None:
        if event.state is StepState.EXECUTING:
            running.set()

    async def cancel_midway() -> None:
        task = asyncio.ensure_future(fabric.run(step))
        await asyncio.to_thread(running.wait, 60)
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    fabric.add_observer(watch)
    try:
        asyncio.run(cancel_midway())
    finally:
        fabric.remove_observer(watch)
    assert balance(fabric) == before
    (node,) = asyncio.run(fabric.mesh.nodes())
    eventually(
        lambda: asyncio.run(fabric.mesh.health(node)).running == 0, "the node stopping its work"
    )


def test_a_step_cancelled_in_review_is_settled_and_bundled_all_the_same(fabric: Fabric) -> None:
    """The node has done its work: it is paid, and running the step again finds the token."""
    key = os.urandom(32)
    ran: list[Any] = []
    step = request(fabric, key, max_tokens=8, effect=ran.append)
    before = balance(fabric)

    async def cancel_in_review() -> None:
        task = asyncio.ensure_future(fabric.run(step))

        def watch(event: StepEvent) -> None:
            if event.state is StepState.REVIEWING:
                asyncio.get_running_loop().call_soon(task.cancel)

        fabric.add_observer(watch)
        try:
            with pytest.raises(asyncio.CancelledError):
                await task
        finally:
            fabric.remove_observer(watch)

    asyncio.run(cancel_in_review())
    assert balance(fabric) == before - fabric.settings.price_wei
    assert ran == []  # nobody waited: the action is left to whoever runs the step again
    (bundle,) = (
        path
        for path in fabric._life.bundles.iterdir()
        if path.is_dir() and Bundle.read(path).metadata.core.spec.nonce == key
    )
    report = verify_bundle(bundle, committee=fabric.committee_keys)
    assert report.ok
    assert [c.status for c in report.checks if c.name == "effect"] == [Status.NOT_MADE]
    nft = asyncio.run(fabric.run(step))
    assert len(ran) == 1
    assert nft.bundle == bundle
    assert balance(fabric) == before - fabric.settings.price_wei


def test_the_same_step_run_from_several_loops_at_once_is_one_step(fabric: Fabric) -> None:
    calls: list[Any] = []

    def effect(value: Any) -> int:
        calls.append(value)
        return len(calls)

    step = request(fabric, os.urandom(32), max_tokens=8, effect=effect)
    before = balance(fabric)
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(lambda: asyncio.run(fabric.run(step))) for _ in range(4)]
        found = [future.result() for future in running]
    assert len({nft.token_id for nft in found}) == 1
    assert [nft.effect for nft in found] == [1] * 4
    assert len(calls) == 1
    assert balance(fabric) == before - fabric.settings.price_wei


def test_cancelling_one_of_two_who_wait_for_a_step_leaves_the_other_alone(fabric: Fabric) -> None:
    step = request(fabric, os.urandom(32), max_tokens=8)

    async def two() -> ComputeNFT:
        first = asyncio.ensure_future(fabric.run(step))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(fabric.run(step))
        await asyncio.sleep(0.1)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        return await first

    nft = asyncio.run(two())
    assert asyncio.run(fabric.run(step)).token_id == nft.token_id


def test_many_steps_from_many_loops_all_settle(fabric: Fabric) -> None:
    before = balance(fabric)
    steps = [request(fabric, os.urandom(32), max_tokens=4) for _ in range(12)]
    with ThreadPoolExecutor(12) as pool:
        running = [pool.submit(lambda s=step: asyncio.run(fabric.run(s))) for step in steps]
        found = [future.result() for future in running]
    assert len({nft.token_id for nft in found}) == 12
    assert balance(fabric) == before - 12 * fabric.settings.price_wei
    assert all(verify_bundle(nft.bundle, committee=fabric.committee_keys).ok for nft in found)


@pytest.mark.parametrize(
    ("effect", "error"),
    [
        (lambda _value: 1 / 0, ZeroDivisionError),
        (lambda _value: "x" * 1_000_001, BundleError),
        (lambda _value: object(), EncodingError),
    ],
    ids=["raises", "returns too much", "returns no JSON"],
)
def test_a_tool_that_failed_is_not_run_again_and_the_paid_step_keeps_its_bundle(
    fabric: Fabric, effect: Any, error: type[Exception]
) -> None:
    key = os.urandom(32)
    step = request(fabric, key, max_tokens=8, effect=effect)
    with pytest.raises(error):
        asyncio.run(fabric.run(step))
    with pytest.raises(StepFailed, match=f"failed before .*{error.__name__}.*not run again"):
        asyncio.run(fabric.run(step))
    token = token_id_of(read_step(fabric._parts.home.step_path(key)).spec.task_id)
    bundle = fabric._life.bundles / f"reason-{token.hex()[:12]}"
    assert verify_bundle(bundle, committee=fabric.committee_keys).ok


def test_requests_out_of_bounds_are_refused_before_money_moves(fabric: Fabric) -> None:
    before = balance(fabric)
    for changes in (
        {"name": "../../etc"},
        {"name": "x" * 65},
        {"name": ""},
        {"max_price_wei": -1},
        {"deadline_ms": -5},
        {"materials": Materials(blobs={str(n): b"" for n in range(17)})},
    ):
        with pytest.raises(ConfigError):
            asyncio.run(fabric.run(request(fabric, os.urandom(32), **changes)))
    assert balance(fabric) == before


DRIVER = """
import asyncio, sys, os
sys.path.insert(0, {root!r})
from daifi_flows import Fabric, Settings
from daifi_flows._step import StepState
from tests.e2e.test_faults import request

settings = Settings(home={home!r}, max_tokens=48)
fabric = Fabric.local(settings)

def watch(event):
    if event.state is StepState.EXECUTING:
        print("RUNNING", flush=True)

fabric.add_observer(watch)
asyncio.run(fabric.run(request(fabric, bytes(32), max_tokens=400)))
"""


def test_a_killed_driver_leaves_no_process_and_the_next_one_refunds(
    ray_cluster: None, tmp_path: Path, eventually: Callable[..., None], shared_home: Path
) -> None:
    root = Path(__file__).parents[2]
    home = tmp_path / "home"
    home.mkdir()
    (home / "cache").symlink_to(shared_home / "cache")  # converted models: made once a session
    code = DRIVER.format(root=str(root), home=str(home))
    driver = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert driver.stdout is not None
    try:
        assert any("RUNNING" in line for line in driver.stdout)
        children = _descendants(driver.pid)
        assert children
    finally:
        driver.kill()
        driver.wait()
    eventually(lambda: not any(_alive(pid) for pid in children), "the driver's processes ending")

    settings = Settings(home=home)
    with Fabric.local(settings) as fabric:
        assert balance(fabric) == settings.buyer_funds_wei
        report = audit(fabric._parts.home.ledger)
        assert report.tasks == {TaskState.CANCELLED.value: 1}
        assert report.supply.conserved


def _descendants(pid: int) -> set[int]:
    """Everything a driver started but Ray's two agents: those watch for a dead raylet themselves,
    and take a minute or two to notice one that was killed."""
    import psutil

    found: set[int] = set()
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if not {"ray::DashboardAgent", "ray::RuntimeEnvAgent"} & {*child.cmdline()}:
                found.add(child.pid)
    return found


def _alive(pid: int) -> bool:
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
