"""The file: lost tails, full and read-only disks, backups, snapshots, exports, a busy writer."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ledger_kinds as t
import pytest
from ledger_kit import (
    BUILDER,
    BUYER,
    GENESIS,
    NODE,
    STRANGER,
    T0,
    SeatsHere,
    info_of,
    make_genesis,
)

from daifi_flows.encoding import canonical, decode_canonical
from daifi_flows.errors import LedgerCorrupted, LedgerError, LedgerUnavailable
from daifi_flows.ledger import (
    Follower,
    LedgerClient,
    LedgerService,
    audit,
    backup_ledger,
    export_ledger,
    import_ledger,
)
from daifi_flows.ledger._snapshot import load_newest, open_snapshot, snapshots_in, take_snapshot
from daifi_flows.ledger._store import Store
from daifi_flows.ledger._store_acked import Acked, AckedFile


async def opened(path: Path, certifier: object = None, **options: object) -> LedgerService:
    seats = certifier or SeatsHere(GENESIS)
    service = LedgerService(path, GENESIS, seats, clock=lambda: T0 + 1, builder=BUILDER, **options)  # pyright: ignore
    await service.start()
    return service


async def pay(service: LedgerService, count: int = 1) -> None:
    client = LedgerClient(service, GENESIS.ledger_id, patience_s=10)
    for _ in range(count):
        await client.transfer(STRANGER.address, 1, BUYER)


def copy_of(path: Path, folder: Path) -> Path:
    """The files as a crash would leave them, without the mark and the lock."""
    folder.mkdir()
    for suffix in ("", "-wal"):
        if path.with_name(path.name + suffix).exists():
            shutil.copy(path.with_name(path.name + suffix), folder / (path.name + suffix))
    return folder / path.name


@pytest.fixture
async def closed(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.db"
    service = await opened(path)
    await LedgerClient(service, GENESIS.ledger_id).register(info_of(NODE), NODE)
    await pay(service, 3)
    await service.close()
    return path


# The high-water mark


async def test_a_file_that_lost_acknowledged_blocks_is_refused_and_can_fetch_them(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.db"
    service = await opened(path)
    await pay(service, 2)
    older = copy_of(path, tmp_path / "older")
    await pay(service, 2)
    shutil.copy(tmp_path / "ledger.db.acked", tmp_path / "older")
    with pytest.raises(LedgerCorrupted, match="older than what it acknowledged") as lost:
        await opened(older)
    assert lost.value.details["acknowledged"] == 4 and lost.value.details["height"] == 3
    with pytest.raises(LedgerCorrupted, match="block 4 was acknowledged"):
        audit(older)
    follower = Follower(older, GENESIS, service, poll_s=0.01)
    await follower.start()
    assert follower.height == 2
    await follower.close()
    with pytest.raises(LedgerCorrupted):
        await opened(older)  # what was only opened is still behind
    follower = Follower(older, GENESIS, service, poll_s=0.01)
    await follower.start()
    async with asyncio.timeout(120):
        await follower.reach(4)
    await follower.close()
    await service.close()
    assert audit(older).head == audit(path).head
    again = await opened(older)
    assert (await again.head())[0].height == 4
    await again.close()


async def test_a_log_that_lost_its_tail_is_noticed(tmp_path: Path) -> None:
    """SQLite opens a log cut anywhere as the older database, without a word."""
    path = tmp_path / "ledger.db"
    service = await opened(path)
    await pay(service, 3)
    crashed = copy_of(path, tmp_path / "crashed")
    shutil.copy(tmp_path / "ledger.db.acked", crashed.parent)
    await service.close()
    size = crashed.with_name("ledger.db-wal").stat().st_size
    assert size > 20_000
    for kept in (0, size // 3, size // 2, size - 100):
        cut = tmp_path / f"cut-{kept}"
        shutil.copytree(crashed.parent, cut)
        with (cut / "ledger.db-wal").open("rb+") as log:
            log.truncate(kept)
        with pytest.raises(LedgerCorrupted, match=r"restore|put"):
            await opened(cut / "ledger.db")
    whole = await opened(crashed)
    assert (await whole.head())[0].height == 3
    await whole.close()


async def test_a_mark_of_another_block_and_a_damaged_mark_are_refused(closed: Path) -> None:
    mark = closed.with_name("ledger.db.acked")
    original = mark.read_bytes()
    file = AckedFile(mark)
    assert file.last is not None and file.last.height == 4
    file.write(Acked(4, bytes(32), 0))
    file.close()
    with pytest.raises(LedgerCorrupted, match="another block"):
        await opened(closed)
    mark.write_bytes(b"\1" * 8192)
    with pytest.raises(LedgerCorrupted, match="mark"):
        await opened(closed)
    mark.write_bytes(original)
    await (await opened(closed)).close()
    mark.unlink()  # a restored copy has none
    service = await opened(closed)
    await pay(service)
    await service.close()


@pytest.mark.parametrize(
    ("torn", "left"), [(0, 3), (40, 3), (80, 3), (4096, 2), (4100, 2), (4170, 2)]
)
def test_a_mark_torn_while_it_was_written_is_the_one_before(
    tmp_path: Path, torn: int, left: int
) -> None:
    """Writes 1 and 3 went to the second page, 2 to the first."""
    path = tmp_path / "mark"
    file = AckedFile(path)
    assert file.last is None
    for height in range(1, 4):
        file.write(Acked(height, bytes([height]) * 32, 7))
    file.close()
    raw = bytearray(path.read_bytes())
    raw[torn] ^= 1
    path.write_bytes(raw)
    again = AckedFile(path)
    assert again.last is not None and again.last.height == left
    again.write(Acked(9, bytes(32), 8))
    again.close()
    last = AckedFile(path)
    assert last.last == Acked(9, bytes(32), 8)
    last.close()


# Full and read-only disks

FULL = """
import asyncio, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from ledger_kit import BUILDER, BUYER, GENESIS, STRANGER, T0, SeatsHere
from daifi_flows.errors import LedgerUnavailable
from daifi_flows.ledger import LedgerClient, LedgerService

async def main(path):
    seats = SeatsHere(GENESIS)
    service = LedgerService(path, GENESIS, seats, clock=lambda: T0 + 1, builder=BUILDER)
    await service.start()
    client = LedgerClient(service, GENESIS.ledger_id, patience_s=5)
    await client.transfer(STRANGER.address, 1, BUYER)
    log = path.with_name(path.name + "-wal")
    full = log.stat().st_size + int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_FSIZE, (full, full))
    done = 1
    try:
        for _ in range(200):
            await client.transfer(STRANGER.address, 1, BUYER)
            done += 1
        raise SystemExit("the disk was never full")
    except LedgerUnavailable as error:
        print(error)
    balance = (await service.account(STRANGER.address)).balance_wei
    assert balance in (done, done + 1), (balance, done)
    assert len(await service.history(1)) == (await service.head())[0].height
    health = await service.health()
    assert health.stalled_reason, health
    try:
        await client.transfer(STRANGER.address, 1, BUYER)
        raise SystemExit("it took more")
    except LedgerUnavailable:
        pass
    assert (await service.metrics())["stopped"] == 1
    await service.close()
    print(done)

asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.mark.parametrize("room", [0, 9_000, 30_000, 61_000])
async def test_a_full_disk_stops_writes_and_not_reads(tmp_path: Path, room: int) -> None:
    path = tmp_path / "ledger.db"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path), str(Path(__file__).parent), str(room)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    message, count = done.stdout.strip().splitlines()
    assert "ledger.db" in message and "disk" in message and "Traceback" not in done.stderr
    report = audit(path)
    service = await opened(path)
    balance = (await service.account(STRANGER.address)).balance_wei
    assert report.height <= balance <= report.height + 1 and balance >= int(count)
    await pay(service)
    await service.close()
    audit(path)


async def test_a_file_that_turns_read_only_stops_writes_and_not_reads(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    service = await opened(path)
    await pay(service, 2)
    service._store._db.execute("PRAGMA query_only=ON")
    with pytest.raises(LedgerUnavailable, match="permissions"):
        await pay(service)
    assert (await service.account(STRANGER.address)).balance_wei == 2
    assert len(await service.history(1)) == 2
    await service.close()
    assert audit(path).height == 2 and audit(path).journaled is None
    service = await opened(path)
    await pay(service)
    await service.close()


# Backups


async def test_a_backup_is_the_ledger_at_one_instant_while_it_is_in_use(tmp_path: Path) -> None:
    service = await opened(tmp_path / "ledger.db")
    await pay(service, 2)
    paying = asyncio.create_task(pay(service, 6))
    copies = []
    while not paying.done():
        copies.append(tmp_path / f"copy-{len(copies)}.db")
        await service.backup(copies[-1])
    await paying
    reports = [audit(copy) for copy in copies]
    heights = [report.height for report in reports]
    assert heights == sorted(heights) and heights[0] >= 2
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(LedgerUnavailable, match="there already"):
        await service.backup(copies[0])
    with pytest.raises(LedgerUnavailable, match="cannot be written"):
        await service.backup(tmp_path / "ledger.db" / "x.db")
    await service.close()
    for suffix in ("", ".acked"):  # the ledger is lost, and the backup takes its place
        (tmp_path / f"ledger.db{suffix}").unlink()
    shutil.copy(copies[-1], tmp_path / "ledger.db")
    service = await opened(tmp_path / "ledger.db")
    while (await service.health()).pending:  # a block that was journaled then
        await asyncio.sleep(0.01)
    await pay(service)
    await service.close()
    with pytest.raises(LedgerError, match="no ledger file"):
        backup_ledger(tmp_path / "nowhere.db", tmp_path / "x.db")


# Snapshots


async def test_a_damaged_snapshot_is_passed_over(closed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "snapshots"
    assert take_snapshot(closed, folder, keep=2) is not None
    assert take_snapshot(closed, folder, keep=2) is None
    (path,) = snapshots_in(folder)
    good = path.read_bytes()
    with open_snapshot(path, GENESIS) as snapshot:
        assert snapshot.header.height == 4 and len(list(snapshot.entries())) == snapshot.count
    found = load_newest(folder, GENESIS)
    assert found is not None and found[0].header.height == 4
    assert load_newest(folder, GENESIS, at_most=3) is None
    for at in range(0, len(good), 97):
        damaged = bytearray(good)
        damaged[at] ^= 0x20
        path.write_bytes(damaged)
        assert load_newest(folder, GENESIS) is None, at
    for size in (0, 10, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:size])
        assert load_newest(folder, GENESIS) is None
    path.write_bytes(good + b"\0")
    assert load_newest(folder, GENESIS) is None
    start = good.index(b"\n") + 1
    end = start + 4 + int.from_bytes(good[start : start + 4], "big")
    plain = decode_canonical(good[start + 4 : end])
    for wrong in ({"peaks": [1]}, {"peaks": ["x" * 32]}, {"entries": [1]}, {"header": []}):
        frame = canonical({**plain, **wrong})
        path.write_bytes(good[:start] + len(frame).to_bytes(4, "big") + frame + good[end:])
        assert load_newest(folder, GENESIS) is None, wrong
    path.write_bytes(good)
    assert load_newest(folder, make_genesis(salt=b"\1" * 32)) is None
    with (
        pytest.raises(LedgerCorrupted, match="snapshot"),
        open_snapshot(path, make_genesis(salt=b"\1" * 32)),
    ):
        pass


async def test_a_snapshot_that_cannot_be_written_does_not_stop_the_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    LedgerService.snapshot_folder(path).write_text("a file where the folder should be")
    service = await opened(path, snapshot_every=1)
    await pay(service, 3)
    assert (await service.metrics())["snapshots"] == 0
    await service.close()


# Exports


async def test_an_export_imports_to_the_same_ledger(closed: Path, tmp_path: Path) -> None:
    text = tmp_path / "ledger.jsonl"
    done = export_ledger(closed, text)
    assert done.height == 4 and done.ledger_id == GENESIS.ledger_id
    lines = [json.loads(line) for line in text.read_text().splitlines()]
    assert len(lines) == 6 and lines[-1]["height"] == 4
    back = import_ledger(text, tmp_path / "again.db", GENESIS.ledger_id)
    assert (back.height, back.head) == (done.height, done.head)
    assert sorted(each.name for each in tmp_path.glob("*again*")) == ["again.db"]
    one, two = audit(closed), audit(tmp_path / "again.db")
    assert (one.head, one.state_root, one.supply) == (two.head, two.state_root, two.supply)
    service = await opened(tmp_path / "again.db")
    await pay(service)
    await service.close()
    export_ledger(tmp_path / "again.db", tmp_path / "more.jsonl")
    assert (
        text.read_text().splitlines()[:5] == (tmp_path / "more.jsonl").read_text().splitlines()[:5]
    )
    for taken in (closed, tmp_path / "again.db"):
        with pytest.raises(LedgerUnavailable, match="there already"):
            import_ledger(text, taken)
    with pytest.raises(LedgerUnavailable, match="there already"):
        export_ledger(closed, text)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda lines: lines[:-1], "cut short"),
        (lambda lines: lines[:3], "cut short"),
        (lambda lines: [*lines[:2], *lines[3:]], "does not follow"),
        (lambda lines: [*lines[:3], lines[2], *lines[3:]], "does not follow"),
        (lambda lines: [*lines[:-2], lines[-1]], "does not end"),
        (lambda lines: [*lines, lines[1]], "goes on"),
        (lambda lines: [lines[0], b"{", *lines[1:]], "cannot be read"),
        (lambda lines: [lines[0], b"[]", *lines[1:]], "not an object"),
        (lambda lines: [lines[0], b"{}", *lines[1:]], "cannot be read"),
        (lambda lines: lines[1:], "no export"),
        (lambda lines: lines[:0], "no export"),
        (lambda lines: [lines[0].replace(b"export/1", b"export/9"), *lines[1:]], "no export"),
        (
            lambda lines: [*lines[:2], lines[2].replace(b'"state_root":"0x', b'"state_root":"0x0')],
            "cannot be read",
        ),
        (lambda lines: [lines[0], _with_certificate_of(lines, 1, 2), *lines[2:]], "certificate"),
    ],
)
async def test_a_changed_export_is_refused_whole(
    closed: Path, tmp_path: Path, change: Callable[[list[bytes]], list[bytes]], why: str
) -> None:
    text = tmp_path / "ledger.jsonl"
    export_ledger(closed, text)
    lines = change(text.read_bytes().splitlines())
    text.write_bytes(b"".join(line + b"\n" for line in lines))
    with pytest.raises(LedgerError, match=why) as refused:
        import_ledger(text, tmp_path / "again.db")
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.glob("*again*"))


def _with_certificate_of(lines: list[bytes], height: int, other: int) -> bytes:
    return json.dumps(
        json.loads(lines[height]) | {"certificate": json.loads(lines[other])["certificate"]}
    ).encode()


def test_an_export_of_another_ledger_is_refused(closed: Path, tmp_path: Path) -> None:
    export_ledger(closed, tmp_path / "ledger.jsonl")
    with pytest.raises(LedgerError, match="is of ledger"):
        import_ledger(tmp_path / "ledger.jsonl", tmp_path / "again.db", bytes(32))
    with pytest.raises(LedgerError, match="cannot be read"):
        import_ledger(tmp_path / "nowhere.jsonl", tmp_path / "again.db")


# A busy writer, and its end


async def test_callers_are_turned_away_with_a_time_when_too_many_wait(tmp_path: Path) -> None:
    gate = asyncio.Event()

    class Gated(SeatsHere):
        async def certify(self, *args: object) -> object:  # pyright: ignore
            await gate.wait()
            return await super().certify(*args)  # pyright: ignore

    service = await opened(tmp_path / "ledger.db", Gated(GENESIS), max_pending=3)
    client = LedgerClient(service, GENESIS.ledger_id, patience_s=30)

    async def send(nonce: int) -> bytes:
        tx = t.Transfer(sender=BUYER.address, nonce=nonce, to=STRANGER.address, amount_wei=1)
        return await service.enqueue(tx.signed(BUYER, GENESIS.ledger_id).encode())

    sent = [await send(nonce) for nonce in range(3)]
    with pytest.raises(LedgerUnavailable, match="try again in") as busy:
        await send(3)
    assert busy.value.details["retry_after_ms"] > 0 and busy.value.details["pending"] == 3
    assert await send(1) == sent[1]  # a repeat of what waits takes no room
    metrics = await service.metrics()
    assert metrics["turned_away"] == 1 and metrics["pending_transactions"] == 3
    patient = asyncio.create_task(client.transfer(STRANGER.address, 1, BUYER))
    while (await service.metrics())["turned_away"] == 1:
        await asyncio.sleep(0.01)
    gate.set()
    for tx in sent:
        await service.wait(tx)
    await patient  # it came again when it was told to
    metrics = await service.metrics()
    assert metrics["finalised"] == 4 == metrics["accepted"] and metrics["pending_blocks"] == 0
    assert metrics["height"] == metrics["blocks"] and metrics["last_block_ms"] == T0 + 1
    await service.close()


async def test_a_graceful_stop_finishes_the_block_in_progress(tmp_path: Path) -> None:
    gate = asyncio.Event()

    class Gated(SeatsHere):
        async def certify(self, *args: object) -> object:  # pyright: ignore
            await gate.wait()
            return await super().certify(*args)  # pyright: ignore

    seats = Gated(GENESIS)
    service = await opened(tmp_path / "ledger.db", seats)
    client = LedgerClient(service, GENESIS.ledger_id, patience_s=1)
    first = asyncio.create_task(client.transfer(STRANGER.address, 1, BUYER))
    while not (await service.metrics())["pending_blocks"]:
        await asyncio.sleep(0.01)
    closing = asyncio.create_task(service.close(grace_s=30))
    await asyncio.sleep(0.05)
    with pytest.raises(LedgerUnavailable, match="closing"):
        await client.transfer(STRANGER.address, 2, NODE)
    assert not closing.done()
    gate.set()
    assert (await first).header.height == 1
    await closing
    report = audit(tmp_path / "ledger.db")
    assert report.height == 1 and report.journaled is None


def test_a_file_with_unknown_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    store = Store(path, GENESIS)
    store._put_meta("format", b"daifi-ledger/1")
    store.close()
    with pytest.raises(LedgerError, match="format"):
        Store(path, GENESIS)
