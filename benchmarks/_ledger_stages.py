"""Where the time of a signed transfer goes: CPU of each stage that service and seats both have."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from benchmarks._ledger_world import SCALE, World
from benchmarks._report import Figure
from daifi_flows._process import collect_rarely
from daifi_flows.ledger._machine import BlockEnv, Machine
from daifi_flows.ledger._state import Layer
from daifi_flows.ledger._trie import Trie
from daifi_flows.ledger._tx import parse_transaction
from daifi_flows.merkle import MountainRange, leaf_hash, merkle_root, root_of_hashes

__all__ = ["figures"]

T = TypeVar("T")
_TRANSFERS = max(500, round(2_000 * SCALE))
"""One full block."""
_RUNS = 5


def figures() -> list[Figure]:
    """One block's transfers, stage by stage."""
    with tempfile.TemporaryDirectory(prefix="daifi-bench-") as folder:
        world = World(Path(folder))
    collect_rarely()
    machine = Machine(world.genesis)
    base = machine.genesis_state()
    trie = Trie().update(base.encoded())
    env = BlockEnv(world.genesis.timestamp_ms + 1, 1)
    took: dict[str, list[float]] = {}

    def stage(name: str, work: Callable[[], T]) -> T:
        began = time.thread_time()
        result = work()
        took.setdefault(name, []).append((time.thread_time() - began) / _TRANSFERS * 1e6)
        return result

    for _ in range(_RUNS):
        raws = world.transfers(_TRANSFERS)  # new ones: what was read before is remembered
        layer = Layer(base)
        txs = stage("read", lambda raws=raws: [parse_transaction(raw) for raw in raws])
        ids = stage("digest", lambda txs=txs: [tx.digest(machine.ledger_id) for tx in txs])
        pairs = list(zip(txs, ids, strict=True))
        stage(
            "signature",
            lambda pairs=pairs: [t.check_signature(machine.ledger_id, i) for t, i in pairs],
        )
        receipts = stage(
            "execute, signature included",
            lambda pairs=pairs, layer=layer: [
                machine.execute(layer, tx, env, size=350, tx_id=tx_id) for tx, tx_id in pairs
            ],
        )
        leaves = stage("encode receipts", lambda found=receipts: [r.canonical() for r in found])

        def commit(
            raws: list[bytes] = raws, leaves: list[bytes] = leaves, at: Layer = layer
        ) -> None:
            hashes = [leaf_hash(leaf) for leaf in leaves]
            merkle_root(raws)
            root_of_hashes(hashes)
            MountainRange().append(hashes)
            _ = trie.update(at.encoded_changes()).root

        stage("roots of transactions, receipts, history and state", commit)
    return [Figure(f"a transfer: {name}", samples, "us") for name, samples in took.items()]
