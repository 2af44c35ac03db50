"""Finds the cNFTs among a step's arguments, and derives what ties a step to its task run."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from daifi_flows.cnft import ComputeNFT
from daifi_flows.encoding import keccak256, tagged_hash

__all__ = ["StepKey", "unwrap"]

_MAX_DEPTH = 64


def unwrap(value: Any) -> tuple[Any, tuple[bytes, ...]]:
    """``value`` with every cNFT replaced by its output, and their token ids in order, each once.

    Looks through lists, tuples (named ones too) and dictionaries; outputs are not searched.
    """
    parents: dict[bytes, None] = {}
    return _unwrap(value, parents, 0), tuple(parents)


def _unwrap(value: Any, parents: dict[bytes, None], depth: int) -> Any:
    if isinstance(value, ComputeNFT):
        parents.setdefault(value.token_id)
        return value.output
    if depth == _MAX_DEPTH:
        return value
    if isinstance(value, Mapping):
        return {key: _unwrap(item, parents, depth + 1) for key, item in value.items()}
    if isinstance(value, tuple):
        items = [_unwrap(item, parents, depth + 1) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [_unwrap(item, parents, depth + 1) for item in value]
    return value


class StepKey:
    """What a Prefect retry of one task run has in common with its first try.

    The public part becomes the spec's nonce, so that a retry is the same task and finds its
    settlement instead of paying again. The private part salts the input: it also depends on the
    buyer's secret, because whoever reads run ids in Prefect must not be able to guess an input
    from its commitment.
    """

    def __init__(self, seed: bytes) -> None:
        self._seed = seed

    @classmethod
    def current(cls) -> StepKey:
        """Of the running Prefect task; a random one outside a task run."""
        from prefect.context import TaskRunContext

        context = TaskRunContext.get()
        if context is None:
            return cls(secrets.token_bytes(32))
        run = context.task_run
        return cls(
            tagged_hash(
                "daifi/step-key/1",
                {
                    "flow_run": str(run.flow_run_id or ""),
                    "task_run": str(run.id),
                    "dynamic_key": run.dynamic_key,
                },
            )
        )

    @property
    def salt_key(self) -> bytes:
        """Public, 32 bytes: makes the spec's nonce."""
        return keccak256(b"daifi/step-nonce/1" + self._seed)

    def input_salt(self, secret: bytes) -> bytes:
        """Private, 32 bytes: salts the input. ``secret`` is the buyer's key."""
        return keccak256(b"daifi/step-salt/1" + keccak256(secret) + self._seed)
