"""A writer killed at any instant restarts to exactly what it had acknowledged."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ledger_kit import DAI, GENESIS, SeatsHere

from daifi_flows.ledger import LedgerService, TaskState, audit

WRITER = Path(__file__).with_name("ledger_writer.py")


def run_until_killed(path: Path, where: str, block: int, acks_until_kill: int | None) -> list[str]:
    """Start a writer; kill it after some acknowledgements (or let it kill itself)."""
    writer = subprocess.Popen(
        [sys.executable, str(WRITER), str(path), where, str(block)],
        stdout=subprocess.PIPE,
        text=True,
    )
    acks: list[str] = []
    assert writer.stdout is not None
    try:
        for line in writer.stdout:
            if line.startswith("ack "):
                acks.append(line.split()[1])
            if acks_until_kill is not None and len(acks) >= acks_until_kill:
                time.sleep(random.Random(acks_until_kill).random() * 0.02)
                writer.kill()
                break
        acks += [line.split()[1] for line in writer.stdout if line.startswith("ack ")]
    finally:
        writer.kill()
        status = writer.wait(timeout=60)
        writer.stdout.close()
    assert status == -signal.SIGKILL
    return acks


async def check(path: Path, acknowledged: list[str]) -> None:
    """Every acknowledged transaction is final, money adds up, nothing is paid twice."""
    service = LedgerService(path, GENESIS, SeatsHere(GENESIS))
    await service.start()
    try:
        for tx in acknowledged:
            assert (await service.wait(bytes.fromhex(tx))).leaf.tx.hex() == tx
        head = (await service.head())[0].height
    finally:
        await service.close()
    report = audit(path)
    assert report.supply.conserved
    assert report.height in (head, head + 1)  # the journaled block may have become final since
    settled = report.tasks.get(TaskState.SETTLED.value, 0)
    assert report.supply.treasury_wei == settled * DAI // 20


@pytest.mark.parametrize(
    ("where", "block"),
    [
        ("journal-before", 1),
        ("journal-after", 1),
        ("certify", 3),
        ("finalise-before", 4),
        ("finalise-after", 5),
    ],
)
async def test_killed_between_journal_and_certificate(
    tmp_path: Path, where: str, block: int
) -> None:
    path = tmp_path / "ledger.db"
    acks = run_until_killed(path, where, block, None)
    before = audit(path)
    assert before.height == (block if where == "finalise-after" else block - 1)
    journaled = where in ("journal-after", "certify", "finalise-before")
    assert before.journaled == (block if journaled else None)
    await check(path, acks)
    acks += run_until_killed(path, "never", 0, 6)
    await check(path, acks)
    assert len(set(acks)) >= len(acks) - 12  # what was done before is answered, not done again


async def test_killed_ten_times_at_random(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    draw, acks = random.Random(2), []
    for _ in range(10):
        acks += run_until_killed(path, "never", 0, draw.randrange(1, 24))
        await check(path, acks)
    assert audit(path).tasks.get("settled", 0) >= 4
