"""Fabrics: a user's own steps, two at once on one machine, and a cluster that is already there."""

from __future__ import annotations

import asyncio
import contextvars
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect import flow

from daifi_flows import Fabric, Settings, cnft_task, verify_bundle
from daifi_flows.errors import ConfigError
from daifi_flows.fabric import _current

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@cnft_task(retries=1)
def word_count(text: str) -> int:
    return len(text.split())


@cnft_task
async def total(counts: list[int]) -> int:
    return sum(counts)


def test_a_users_own_steps_are_verified_and_linked(prefect_api: None, fabric: Fabric) -> None:
    @flow(name="count-words")
    async def count(texts: list[str]) -> Any:
        counted = word_count.map(texts)
        return await total([future.result() for future in counted])

    merged = asyncio.run(count(["verified compute", "for agentic pipelines", "a b c d"]))
    assert merged.output == 9
    assert len(merged.parents) == 3
    assert merged.spec.scheme == "digest"
    report = verify_bundle(merged.bundle, committee=fabric.committee_keys)
    assert report.ok


def test_two_fabrics_share_a_machine_and_a_home(
    prefect_api: None, fabric: Fabric, settings: Settings
) -> None:
    @flow(name="one-word")
    async def one() -> Any:
        return await word_count("one")

    with Fabric.local(settings) as second:
        assert second.settlement.ledger_id != fabric.settlement.ledger_id
        assert Fabric.current() is second
        nft = asyncio.run(one())
        assert nft.attestation.ledger_id == second.settlement.ledger_id
    assert asyncio.run(fabric.settlement.token(nft.token_id)) is None
    with pytest.raises(ConfigError, match="closed"):
        asyncio.run(second.run(None))  # pyright: ignore[reportArgumentType]


def test_without_a_fabric_a_step_says_what_to_do(
    prefect_api: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daifi_flows.fabric._open", [])

    @flow(name="homeless")
    async def homeless() -> Any:
        return await word_count("one")

    alone = contextvars.copy_context()
    alone.run(_current.set, None)
    with pytest.raises(ConfigError, match=r"Fabric\.local"):
        alone.run(asyncio.run, homeless())


def _script(code: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        cwd=home,
        env={**os.environ, "DAIFI_HOME": str(home), **environment},
    )


def test_the_readme_example_runs_as_printed(prefect_api: None, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    script = tmp_path / "mine.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env={**os.environ, "DAIFI_HOME": str(tmp_path / "home")},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[:2] == ["5", "accepted"]


CONNECT = """
import asyncio, sys
sys.path.insert(0, {root!r})
import ray
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 4}})
try:
    from daifi_flows import Fabric
    from prefect import flow
    from tests.e2e.test_fabric import word_count

    @flow(name="elsewhere")
    async def elsewhere():
        return await word_count("two words")

    with Fabric.connect(cluster.address) as fabric:
        nft = asyncio.run(elsewhere())
        print("RESULT", nft.output, nft.attestation.decision.value, flush=True)
finally:
    cluster.shutdown()
"""


def test_a_fabric_connects_to_a_cluster_that_is_there(prefect_api: None, tmp_path: Path) -> None:
    done = _script(CONNECT.format(root=str(ROOT)), tmp_path)
    assert "RESULT 2 accepted" in done.stdout, done.stderr[-2000:]
