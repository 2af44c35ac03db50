"""Every kind of transaction under one name, for tests that use many: ``t.Transfer``, ``t.Open``."""

from typing import Any

from daifi_flows.ledger._tx import KINDS, Transaction, parse_transaction

__all__ = ["KINDS", "Transaction", "parse_transaction"]


def __getattr__(name: str) -> Any:
    for kind in KINDS.values():
        if kind.__name__ == name:
            return kind
    raise AttributeError(name)
