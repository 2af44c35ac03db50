"""Kills a ledger's writer at every named point of the block that hands over to a new committee.

Argument: folder. Prints one JSON object. Every life is a forked child: nothing but the files goes
from the life that dies to the one that looks at what is left (see crash_driver.py).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from committee_bench import GENESIS, SeatsThatChange, handed_over
from ledger_kit import BUYER, STRANGER
from test_rotation import World

from daifi_flows.cnft import QuorumCertificate
from daifi_flows.ledger import LedgerClient, LedgerService, Replica, audit
from daifi_flows.ledger._tx.committee import HandOver

POINTS = (
    "journal:begin",
    "journal:written",
    "journal:committed",
    "finalise:begin",
    "finalise:written",
    "finalise:committed",
    "finalise:acknowledged",
    "snapshot:begin",
    "snapshot:entries",
    "snapshot:written",
    "snapshot:renamed",
)
_SURVIVES = POINTS[2:]
"""From here on the handover is in the file."""


def child(life: Callable[[], Awaitable[Any]]) -> Any:
    """Run one life; what it returned, or that it was killed."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            answer = {"answer": asyncio.run(life())}  # pyright: ignore
        except BaseException as error:
            answer = {"error": "".join(traceback.format_exception(error))[-1500:]}
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return "killed"
    found = json.loads(text)
    if "error" in found:
        raise SystemExit(found["error"])
    return found["answer"]


async def prepare(path: Path) -> str:
    """Up to the draw; the handover that is to be sent, as the seats signed it."""
    async with World(path) as world:
        await world.offer_all()
        await world.draw()
        fields = handed_over(world.base)
        certificate = fields["certificate"]
        assert isinstance(certificate, QuorumCertificate)
        return certificate.canonical().hex()


async def hand_over(path: Path, certificate: bytes, where: str) -> None:
    def probe(point: str) -> None:
        if point == where:
            os.kill(os.getpid(), signal.SIGKILL)

    folder = LedgerService.snapshot_folder(path)
    seats = SeatsThatChange(GENESIS, replica=Replica(GENESIS, snapshots=folder))
    async with World(path, seats, probe=probe, snapshot_every=1) as world:
        fields = handed_over(world.base)
        fields["certificate"] = QuorumCertificate.from_canonical(certificate)
        await world.client.submit(HandOver, BUYER, fields)
        await asyncio.sleep(30)


async def look(path: Path, certificate: bytes, where: str) -> dict[str, object]:
    """What is left: the handover is there or can be sent again, and the next block is certified by
    whom it put in office."""
    before = audit(path)
    folder = LedgerService.snapshot_folder(path)
    seats = SeatsThatChange(GENESIS, replica=Replica(GENESIS, snapshots=folder))
    async with World(path, seats) as world:
        while (await world.service.health()).pending:  # a journaled block becomes final by itself
            await asyncio.sleep(0.005)
        epoch = (await world.service.committee()).epoch
        assert epoch == (2 if where in _SURVIVES else 1), f"{where}: epoch {epoch}"
        if epoch == 1:
            fields = handed_over(world.base)
            fields["certificate"] = QuorumCertificate.from_canonical(certificate)
            receipt = await world.client.submit(HandOver, BUYER, fields)
            assert receipt.header.epoch == 1
        client = LedgerClient(world.service, GENESIS.ledger_id, patience_s=10)
        receipt = await client.transfer(STRANGER.address, 1, BUYER)
        assert receipt.header.epoch == 2
        assert receipt.header.committee == (await world.service.committee()).digest
        assert len((await world.service.handovers()).handovers) == 1
        head = (await world.service.head())[0]
    report = audit(path)
    assert report.head == head.digest and report.journaled is None
    return {"journaled": before.journaled is not None, "epoch": epoch, "height": head.height}


def main(folder: Path) -> None:
    first = folder / "first" / "ledger.db"
    first.parent.mkdir()
    certificate = bytes.fromhex(child(lambda: prepare(first)))
    found: dict[str, object] = {}
    for number, where in enumerate(POINTS):
        path = folder / str(number) / "ledger.db"
        shutil.copytree(first.parent, path.parent)
        assert child(lambda: hand_over(path, certificate, where)) == "killed", where  # noqa: B023
        found[where] = child(lambda: look(path, certificate, where))  # noqa: B023
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
