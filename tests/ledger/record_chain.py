"""Records the small chain of ``data/``, which test_replay replays: run it when a format changes.

python tests/ledger/record_chain.py
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from daifi_flows.ledger import audit, export_ledger, import_ledger
from daifi_flows.ledger._store import Store

DATA = Path(__file__).with_name("data")
CHAIN = DATA / "chain.jsonl"
EXPECTED = DATA / "chain.json"
TABLES = ("blocks", "certificates", "state", "buckets", "history", "txs", "marks", "nodes")


def replay(folder: Path) -> dict[str, str]:
    """Execute the recorded chain; hashes of everything that comes of it."""
    path = folder / "ledger.db"
    import_ledger(CHAIN, path)
    report = audit(path)
    export_ledger(path, folder / "again.jsonl")
    found = {
        "head": report.head.hex(),
        "state_root": report.state_root.hex(),
        "supply": report.supply.canonical().hex(),
        "export": hashlib.sha256((folder / "again.jsonl").read_bytes()).hexdigest(),
    }
    store = Store(path, None, writable=False)
    for table in TABLES:
        digest = hashlib.sha256()
        for row in store.table(table):
            digest.update(repr(row).encode())
        found[table] = digest.hexdigest()
    store.close()
    return found


async def record(path: Path) -> None:
    """A life of everything that the other tests have at hand."""
    from committee_bench import (
        CANDIDATES,
        EPOCH_MS,
        GENESIS,
        SeatsThatChange,
        candidate_info,
        handed_over,
    )
    from ledger_kit import (
        BUILDER,
        BUYER,
        DAI,
        NODE,
        OTHER,
        PROOF_CID,
        STRANGER,
        T0,
        attest,
        bound,
        info_of,
        make_header,
        make_spec,
        make_vote,
        subject_of,
    )

    from daifi_flows.cnft import Decision, VoteChoice
    from daifi_flows.ledger import Elections, LedgerClient, LedgerService

    now = T0

    def clock() -> int:
        nonlocal now
        now += 250
        return now

    seats = SeatsThatChange(GENESIS)
    service = LedgerService(path, GENESIS, seats, clock=clock, builder=BUILDER)
    await service.start()
    ledger = LedgerClient(service, GENESIS.ledger_id)
    for node in (NODE, OTHER):
        await ledger.register(info_of(node), node)
        await ledger.stake(50 * DAI, node)
    for number in range(3):
        spec = make_spec(number)
        await ledger.open_escrow(spec, BUYER)
        await ledger.assign(spec.task_id, NODE.address, 2 * DAI, BUYER)
        if number == 1:
            await ledger.release(spec.task_id, BUYER)
            await ledger.cancel(spec.task_id, BUYER)
            continue
        await ledger.commit(spec.task_id, make_header(spec), PROOF_CID, BUYER)
        if number == 2:
            await ledger.reject(attest(spec, Decision.REJECTED, ledger_id=GENESIS.ledger_id), BUYER)
        else:
            await ledger.settle(attest(spec, ledger_id=GENESIS.ledger_id), bytes(32), BUYER)
            subject = subject_of(spec, ledger_id=GENESIS.ledger_id)
            twice = [bound(make_vote(subject, 3, choice)) for choice in list(VoteChoice)[:2]]
            await ledger.report_double_vote(subject, twice[0], twice[1], OTHER)
    await asyncio.gather(*(ledger.transfer(STRANGER.address, n + 1, OTHER) for n in range(5)))
    elections = Elections(ledger)

    async def offer(index: int) -> None:
        await ledger.register(candidate_info(index), CANDIDATES[index])
        await ledger.stake(200 * DAI, CANDIDATES[index])
        await elections.offer((101 + index) * DAI, CANDIDATES[index])

    await asyncio.gather(*(offer(index) for index in range(22)))
    now += EPOCH_MS
    await elections.close_roll(BUYER)
    await elections.draw(BUYER)
    fields = handed_over(service._chain.base)
    await elections.hand_over(fields["committee"], fields["certificate"], BUYER)  # pyright: ignore
    await ledger.transfer(STRANGER.address, 1, OTHER)
    await service.close()


def main() -> None:
    DATA.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(record(Path(folder) / "ledger.db"))
        CHAIN.unlink(missing_ok=True)
        export_ledger(Path(folder) / "ledger.db", CHAIN)
    with tempfile.TemporaryDirectory() as folder:
        EXPECTED.write_text(json.dumps(replay(Path(folder)), indent=2) + "\n")
    print(f"{CHAIN}: {CHAIN.stat().st_size} bytes")


if __name__ == "__main__":
    if sys.argv[1:] == ["replay"]:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(replay(Path(folder))))
    else:
        main()
