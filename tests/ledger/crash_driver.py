"""Kills a ledger's writer again and again, and checks each time what is left on disk.

Arguments: folder, number of kills, seed. Prints one JSON object. Each life of the writer is a
forked child that dies by SIGKILL, either at a named point inside a write or at a random instant;
each check is another child, so that nothing but the files goes from one life to the next.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import select
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import ledger_kinds as t
from ledger_kit import BUILDER, DAI, FREE, SEAT_ACCOUNTS, SEAT_KEYS, SeatsHere

from daifi_flows.cnft import Committee, Seat, beacon_message
from daifi_flows.encoding import keccak256
from daifi_flows.errors import LedgerError
from daifi_flows.keys import Account
from daifi_flows.ledger import Genesis, LedgerService, Params, Replica, audit
from daifi_flows.ledger._snapshot import open_snapshot, snapshots_in
from daifi_flows.threshold import deal

POINTS = {
    "journal:begin": 7,
    "journal:written": 7,
    "journal:committed": 7,
    "finalise:begin": 7,
    "finalise:written": 7,
    "finalise:committed": 7,
    "finalise:acknowledged": 7,
    "snapshot:begin": 2,
    "snapshot:entries": 2,
    "snapshot:written": 2,
    "snapshot:renamed": 2,
    "rotate:removed": 2,
    "backup:begin": 3,
    "backup:pages": 3,
    "backup:written": 3,
    "backup:renamed": 3,
}
"""Where a writer kills itself, and up to the how-manieth time it comes there."""
_JOURNALED = {
    "journal:begin": False,
    "journal:written": False,
    "journal:committed": True,
    "finalise:begin": True,
    "finalise:written": True,
    "finalise:committed": False,
    "finalise:acknowledged": False,
}
"""Whether a block is then in the file without its certificate."""
RANDOM_S = 0.6
"""Longest time that a writer lives which is killed from outside, once it is up."""
DEALING = deal(b"the dealer of the crash tests".ljust(32), 4, 3)
PAYERS = [Account.from_seed(b"payer%d" % i) for i in range(3)]
PAYEE = Account.from_seed(b"payee")


class FewSeats(SeatsHere):
    """Four seats in this process."""

    def _shares(self, digest: bytes) -> list[tuple[int, bytes]]:
        return [(i, DEALING.secrets[i].sign(beacon_message(digest))) for i in self.seats]


GENESIS = Genesis.create(
    salt=bytes(32),
    timestamp_ms=1_700_000_000_000,
    allocations=[(payer.address, 1_000_000 * DAI) for payer in PAYERS],
    committee=Committee(
        epoch=1,
        seats=tuple(
            Seat(
                index=i,
                public=SEAT_KEYS[i].public,
                possession=SEAT_KEYS[i].prove_possession(),
                account=SEAT_ACCOUNTS[i].address,
                share=DEALING.shares[i],
            )
            for i in range(4)
        ),
        group_key=DEALING.group_key,
    ),
    params=Params(fees=FREE),
)


def amount_of(request: bytes) -> int:
    """Each request moves an amount of its own."""
    return 1 + int.from_bytes(request[:6], "big")


def seats(path: Path) -> FewSeats:
    folder = LedgerService.snapshot_folder(path)
    return FewSeats(GENESIS, seats=range(4), replica=Replica(GENESIS, snapshots=folder))


# The writer


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def write(
    path: Path, say: Callable[[str], None], redo: list[str], salt: bytes, where: str, time_: int
) -> None:
    """Pay until killed; first again what earlier lives sent and never saw answered."""
    seen: Counter[str] = Counter()

    def probe(point: str) -> None:
        seen[point] += 1
        if point == where and seen[point] == time_:
            say("there")
            die()

    service = LedgerService(
        path, GENESIS, seats(path), builder=BUILDER, snapshot_every=3, snapshots=2, probe=probe
    )
    await service.start()
    say("up")

    async def pay(payer: Account, request: bytes) -> None:
        say(f"sent {request.hex()}")
        tx = t.Transfer(
            sender=payer.address,
            nonce=await service.next_nonce(payer.address),
            to=PAYEE.address,
            amount_wei=amount_of(request),
            request=request,
        )
        receipt = await service.submit(tx.signed(payer, GENESIS.ledger_id).encode())
        say(f"ack {request.hex()} {receipt.leaf.tx.hex()} {receipt.header.height}")

    async def work(number: int) -> None:
        payer = PAYERS[number]
        for request in redo:
            if int(request[-2:], 16) == number:
                await pay(payer, bytes.fromhex(request))
        for count in range(10_000):
            draw = keccak256(salt + bytes([number]) + count.to_bytes(4, "big"))
            await pay(payer, draw[:31] + bytes([number]))

    async def backups() -> None:
        for number in range(10_000):
            target = path.with_name(f"backup-{salt.hex()}-{number}.db")
            await service.backup(target)
            await asyncio.sleep(0.2)

    await asyncio.gather(backups(), *(work(number) for number in range(len(PAYERS))))


def live(path: Path, draw: random.Random, redo: list[str], salt: bytes) -> tuple[list[str], str]:
    """One life of a writer; what it said, and how it died."""
    where, time_ = "random", 0
    if draw.random() < 0.65:
        where = draw.choice(list(POINTS))
        time_ = draw.randrange(1, POINTS[where] + 1)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            say = lambda line: os.write(writing, line.encode() + b"\n")  # noqa: E731
            asyncio.run(write(path, say, redo, salt, where, time_))
        except BaseException as error:
            os.write(writing, f"error {type(error).__name__}: {error}\n".encode())
        os._exit(1)
    os.close(writing)
    text = b""
    deadline = None
    give_up = time.monotonic() + 60
    while True:
        now = time.monotonic()
        if deadline is None and text.startswith(b"up\n"):
            deadline = now + (draw.random() * RANDOM_S if where == "random" else 8)
        if (deadline is not None and now >= deadline) or now >= give_up:
            os.kill(child, signal.SIGKILL)  # the writer alone: a child of this process
        if select.select([reading], [], [], 0.005)[0]:
            data = os.read(reading, 1 << 16)
            if not data:
                break
            text += data
    os.close(reading)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, text.decode()[-500:]
    return text.decode().splitlines(), where


# The check


async def check(
    path: Path,
    acked: dict[str, str],
    sent: set[str],
    died: str,
    height: int,
    unrotated: int,
    whole: bool,
) -> dict[str, int]:
    """What was acknowledged is final; every sent payment happened once or not at all."""
    before = audit(path, from_height=max(1, height - 3))
    if died in _JOURNALED:
        assert (before.journaled is not None) == _JOURNALED[died], f"{died}: {before.journaled}"
    began = time.monotonic()
    service = LedgerService(path, GENESIS, seats(path), builder=BUILDER, snapshot_every=0)
    await service.start()
    took_ms = int((time.monotonic() - began) * 1000)
    try:
        while (await service.health()).pending:  # a journaled block becomes final by itself
            await asyncio.sleep(0.005)
        total = 0
        for request in sent:
            sender = PAYERS[int(request[-2:], 16)]
            key = b"request/" + bytes.fromhex(sender.address[2:]) + bytes.fromhex(request)
            mark = service._store.find_mark(key)
            if request in acked:
                assert mark is not None and mark.tx.hex() == acked[request], "a payment was lost"
                receipt = await service.receipt(mark.tx)
                assert receipt.leaf.tx == mark.tx
            if mark is not None:
                total += amount_of(bytes.fromhex(request))
        paid = (await service.account(PAYEE.address)).balance_wei
        assert paid == total, f"{paid} wei were paid and {total} were sent"
        assert (await service.supply()).conserved
        head = (await service.head())[0]
    finally:
        await service.close()
    report = audit(path, from_height=1 if whole else max(1, head.height - 3))
    assert report.height == head.height and report.head == head.digest
    files = snapshots_in(LedgerService.snapshot_folder(path))
    # Two are kept; one more for each time it was killed before it could remove an older one.
    assert len(files) <= 2 + unrotated, f"{len(files)} snapshots"
    for each in files:
        with open_snapshot(each, GENESIS) as snapshot:
            assert sum(1 for _ in snapshot.entries()) == snapshot.count
    copies = sorted(path.parent.glob("backup-*.db"))
    for copy in copies[-1:]:
        assert audit(copy).height <= head.height
    return {
        "height": head.height,
        "start_ms": took_ms,
        "copies": len(copies),
        "snapshots": len(files),
    }


def checked(*args: Any) -> dict[str, int]:
    """:func:`check` in a child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            answer = json.dumps(asyncio.run(check(*args)))
        except BaseException as error:
            answer = json.dumps({"error": "".join(traceback.format_exception(error))[-1500:]})
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = json.loads(pipe.read())
    os.waitpid(child, 0)
    if "error" in answer:
        raise SystemExit(f"check failed: {answer['error']}")
    return answer


def main(folder: Path, kills: int, seed: int) -> None:
    path = folder / "ledger.db"
    acked: dict[str, str] = {}
    sent: set[str] = set()
    died: Counter[str] = Counter()
    slowest_ms = copies = unrotated = 0
    found: dict[str, int] = {"height": 0}
    for number in range(kills):
        draw = random.Random(f"{seed}/{number}")  # how it dies does not depend on how fast it was
        redo = sorted(sent - set(acked))
        lines, where = live(path, draw, redo[-6:], draw.randbytes(8))
        died[where] += 1
        for line in lines:
            words = line.split()
            if words[0] == "error":
                raise SystemExit(f"life {number} ({where}): {line}")
            if words[0] == "sent":
                sent.add(words[1])
            elif words[0] == "ack":
                acked[words[1]] = words[2]
        reached = where if lines and lines[-1] == "there" else ""
        whole = number % 25 == 24 or number == kills - 1
        unrotated += 1
        found = checked(path, acked, sent, reached, found["height"], unrotated, whole)
        if found["snapshots"] <= 2:
            unrotated = 0
        slowest_ms = max(slowest_ms, found["start_ms"])
        copies += found["copies"]
        for copy in folder.glob("backup-*"):
            copy.unlink()
    for part in folder.glob(".*.part"):
        part.unlink()
    print(
        json.dumps(
            {
                "kills": kills,
                "points": dict(sorted(died.items())),
                "acknowledged": len(acked),
                "sent": len(sent),
                "height": found["height"],
                "backups": copies,
                "slowest_start_ms": slowest_ms,
            }
        )
    )


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    except LedgerError as error:
        raise SystemExit(str(error)) from error
