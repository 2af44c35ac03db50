"""How long a start and an audit take, and how much memory they and a few blocks need.

    python tests/ledger/recovery_bench.py blocks 100000
    python tests/ledger/recovery_bench.py entries 1000000
    python tests/ledger/recovery_bench.py audit 50000

Files are made fast: every transaction is signed and executed, but only the last block has a real
certificate and a real proposer, which is all that a start looks at. The measured part runs in a
process of its own, with seats that sign without looking, so that only the ledger's memory counts.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import ledger_kinds as t
from crash_driver import DEALING, GENESIS, PAYEE, PAYERS
from eth_utils.address import to_checksum_address
from ledger_kit import SEAT_ACCOUNTS, SEAT_KEYS

from daifi_flows.cnft import BlockHeader, QuorumCertificate, beacon_message, proposal_digest
from daifi_flows.encoding import keccak256
from daifi_flows.keys import Account, aggregate_bls
from daifi_flows.ledger import AccountRecord, LedgerService, audit
from daifi_flows.ledger._blocks import Block, BlockEnv, build
from daifi_flows.ledger._certifier import History
from daifi_flows.ledger._machine import Machine
from daifi_flows.ledger._recovery import certified_state
from daifi_flows.ledger._seal import Offer, Seal, open_slot
from daifi_flows.ledger._snapshot import take_snapshot
from daifi_flows.ledger._state import Layer
from daifi_flows.ledger._store import Store
from daifi_flows.ledger._store_changes import changes_of, marks_of
from daifi_flows.ledger._tx import parse_transaction

BUILDER = Account.from_seed(b"bench builder")
NO_SEAL = Seal(beacon=bytes(96), builder=bytes(65), proposer=bytes(65))
NO_CERTIFICATE = QuorumCertificate(signers=7, signature=bytes(96))


def certificate_of(header: BlockHeader) -> QuorumCertificate:
    message = QuorumCertificate.message(header.digest)
    return QuorumCertificate(
        signers=15, signature=aggregate_bls([key.sign(message) for key in SEAT_KEYS[:4]])
    )


class BlindSeats:
    """Four seats that sign whatever they are shown."""

    async def propose(self, seat: int, offer: bytes, history: History) -> tuple[bytes, bytes]:
        digest = Offer.from_canonical(offer).bids[0].header.digest
        return digest, SEAT_ACCOUNTS[seat].sign(proposal_digest(digest))

    async def certify(
        self, header: BlockHeader, block: bytes, history: History
    ) -> Sequence[tuple[int, bytes, bytes]]:
        message = QuorumCertificate.message(header.digest)
        shares = dict(self._shares(header.digest))
        return [(i, SEAT_KEYS[i].sign(message), shares[i]) for i in range(4)]

    async def resume(
        self, header: BlockHeader, term: int, history: History
    ) -> tuple[Sequence[tuple[int, bytes]], Sequence[int], Sequence[bytes]]:
        return self._shares(header.digest), [], []

    async def skip(
        self, parent: BlockHeader, round: int, term: int, history: History
    ) -> Sequence[tuple[int, bytes]]:
        raise AssertionError("no seat is silent here")

    def _shares(self, digest: bytes) -> list[tuple[int, bytes]]:
        return [(i, DEALING.secrets[i].sign(beacon_message(digest))) for i in range(4)]


def make(path: Path, blocks: int, entries: int) -> None:
    """A ledger file with this many blocks, whose second one adds state entries out of nothing."""
    machine = Machine(GENESIS)
    store = Store(path, GENESIS)
    store._db.execute("PRAGMA synchronous=OFF")
    store._acknowledge = lambda *_: None  # pyright: ignore
    at = certified_state(store, machine)
    slot = open_slot(at.header, at.base, bytes(96), 0)
    certificate = NO_CERTIFICATE
    ledger_id = GENESIS.ledger_id
    for number in range(blocks):
        layer = Layer(at.base)
        now_ms = at.header.timestamp_ms + 1_000
        tx = t.Transfer(
            sender=PAYERS[0].address, nonce=number, to=PAYEE.address, amount_wei=number + 1
        ).signed(PAYERS[0], ledger_id)
        raw = tx.encode()
        env = BlockEnv(now_ms, number + 1)
        receipt = machine.execute(layer, parse_transaction(raw), env, size=len(raw))
        if number == 1:
            for each in range(entries):
                layer.put(account(each))
        slot = replace(slot, parent=at.header, beacon=bytes(32), round=0)
        candidate = build(
            slot,
            at.trie,
            at.history,
            layer,
            builder=BUILDER.address,
            bid_wei=0,
            transactions=[raw],
            receipts=[receipt],
            timestamp_ms=now_ms,
        )
        block = Block(header=candidate.header, transactions=(raw,), seal=NO_SEAL, justify=None)
        last = number == blocks - 1
        certificate = certificate_of(candidate.header) if last else NO_CERTIFICATE
        changes = changes_of(candidate, at.history, marks_of([raw], [receipt]))
        store.append(block.canonical(), candidate.leaves, candidate.header, certificate, changes, 0)
        at.adopt(candidate, certificate)
    store.close()
    path.with_name(path.name + ".acked").unlink()


def account(number: int) -> AccountRecord:
    return AccountRecord(address=to_checksum_address(keccak256(b"%d" % number)[:20]))


async def measured(path: Path, count: int) -> dict[str, float]:
    began = time.perf_counter()
    service = LedgerService(path, GENESIS, BlindSeats(), builder=BUILDER, snapshot_every=0)
    await service.start()
    start_s = time.perf_counter() - began
    started_kib = _memory_kib()
    nonce = await service.next_nonce(PAYERS[0].address)
    began, cpu_began = time.perf_counter(), time.process_time()
    for at in range(0, count, 100):
        sent = []
        for number in range(at, at + 100):
            tx = t.Transfer(
                sender=PAYERS[0].address,
                nonce=nonce + number,
                to=account(number).address,
                amount_wei=1,
            ).signed(PAYERS[0], GENESIS.ledger_id)
            sent.append(await service.enqueue(tx.encode()))
        for tx_id in sent:
            await service.wait(tx_id)
    took_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    await service.close()
    return {
        "start_s": round(start_s, 3),
        "memory_after_start_mib": round(started_kib / 1024, 1),
        "memory_after_transactions_mib": round(_memory_kib() / 1024, 1),
        "peak_mib": round(_memory_kib("VmHWM:") / 1024, 1),
        "transactions": count,
        "transactions_per_s": round(count / took_s, 1),
        "cpu_ms_per_transaction": round(1000 * cpu_s / count, 3),
    }


def _memory_kib(name: str = "VmRSS:") -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise AssertionError(f"no {name}")


async def grow(path: Path, count: int) -> None:
    """A real ledger of this many transfers, each to an account of its own."""
    service = LedgerService(path, GENESIS, BlindSeats(), builder=BUILDER, snapshot_every=0)
    await service.start()
    for start in range(0, count, 500):
        for number in range(start, start + 500):
            tx = t.Transfer(
                sender=PAYERS[0].address, nonce=number, to=account(number).address, amount_wei=1
            )
            last = await service.enqueue(tx.signed(PAYERS[0], GENESIS.ledger_id).encode())
        await service.wait(last)
    await service.close()


def audited(path: Path) -> dict[str, float]:
    began, cpu_began = time.perf_counter(), time.process_time()
    report = audit(path)
    took_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    return {
        "blocks": report.height,
        "transactions": report.transactions,
        "audit_s": round(took_s, 2),
        "transactions_per_s": round(report.transactions / took_s),
        "transactions_per_cpu_s": round(report.transactions / cpu_s),
        "memory_mib": round(_memory_kib() / 1024, 1),
        "peak_mib": round(_memory_kib("VmHWM:") / 1024, 1),
    }


def main(what: str, count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        if what == "audit":
            asyncio.run(grow(path, count))
            print(json.dumps(_measure("audited", path), indent=2))
            return
        began = time.perf_counter()
        make(path, count if what == "blocks" else 3, count if what == "entries" else 0)
        report: dict[str, object] = {
            what: count,
            "made_s": round(time.perf_counter() - began, 1),
            "file_mib": round(path.stat().st_size / 2**20, 1),
        }
        began = time.perf_counter()
        snapshot = take_snapshot(path, Path(folder) / "snapshots", keep=1)
        assert snapshot is not None
        report["snapshot_s"] = round(time.perf_counter() - began, 2)
        report["snapshot_mib"] = round(snapshot.stat().st_size / 2**20, 2)
        for _ in range(2):
            report.setdefault("runs", []).append(_measure("measured", path))  # pyright: ignore
        print(json.dumps(report, indent=2))


def _measure(what: str, path: Path) -> dict[str, float]:
    run = subprocess.run(
        [sys.executable, __file__, what, str(path)], capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout)


if __name__ == "__main__":
    if sys.argv[1] == "measured":
        print(json.dumps(asyncio.run(measured(Path(sys.argv[2]), 2_000))))
    elif sys.argv[1] == "audited":
        print(json.dumps(audited(Path(sys.argv[2]))))
    else:
        main(sys.argv[1], int(sys.argv[2]))
