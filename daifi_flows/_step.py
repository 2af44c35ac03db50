"""What a step asks of the fabric, and what the fabric tells while it works on it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from daifi_flows.cnft import Content, Materials, ModelRef, Review, Sampling

__all__ = ["StepEvent", "StepRequest", "StepState", "dai", "percent"]


def dai(amount_wei: int) -> str:
    """An amount for people, exact, in DAi (10^18 wei).

    >>> dai(10**16), dai(25 * 10**18)
    ('0.01 DAi', '25 DAi')
    """
    whole, rest = divmod(amount_wei, 10**18)
    fraction = f"{rest:018d}".rstrip("0")
    return f"{whole}.{fraction} DAi" if fraction else f"{whole} DAi"


def percent(ppm: int) -> str:
    """A share for people, exact.

    >>> percent(20_000), percent(102_012), percent(1_000_000)
    ('2 %', '10.2012 %', '100 %')
    """
    whole, rest = divmod(ppm, 10_000)
    fraction = f"{rest:04d}".rstrip("0")
    return f"{whole}.{fraction} %" if fraction else f"{whole} %"


class StepState(StrEnum):
    """Where a step stands, in order; ``REJECTED`` and ``LOST`` lead back to ``ROUTED``."""

    OPEN = "open"
    ROUTED = "routed"
    EXECUTING = "executing"
    COMMITTED = "committed"
    REVIEWING = "reviewing"
    ATTESTED = "attested"
    SETTLED = "settled"
    EFFECT = "effect"
    REJECTED = "rejected"
    LOST = "lost"
    REFUNDED = "refunded"


@dataclass(frozen=True)
class StepEvent:
    """One line of a step's progress."""

    step: str
    kind: str
    state: StepState
    task_id: bytes
    message: str
    """One sentence for a person."""
    details: Mapping[str, Any] = field(default_factory=lambda: {})


@dataclass(frozen=True)
class StepRequest:
    """A step as the tasks room hands it to :meth:`Fabric.run`.

    Attributes:
        name: what people see (``retrieve``); ``kind`` is the class of work.
        model: which weights or code; its ``engine`` picks the node.
        input: the salted input; its CID goes into the spec.
        salt_key: 32 bytes that make the spec's nonce: the same key is the same task, so that a
            retried step finds its settlement instead of paying again.
        scheme: proof scheme, by name.
        parents: token ids of the cNFTs this step builds on.
        decode: turns the output content's value into what the user sees as ``.output``.
        effect: runs once after settlement, with the decoded output; its JSON return value is
            committed in the bundle.
        log_context: opaque Prefect context for logs written on the node.
    """

    name: str
    kind: str
    model: ModelRef
    input: Content
    salt_key: bytes
    scheme: str
    sampling: Sampling | None = None
    review: Review | None = None
    parents: tuple[bytes, ...] = ()
    materials: Materials = field(default_factory=Materials)
    max_price_wei: int | None = None
    deadline_ms: int | None = None
    encrypt: bool = False
    decode: Callable[[Any], Any] = lambda value: value
    effect: Callable[[Any], Any | Awaitable[Any]] | None = None
    log_context: Mapping[str, Any] | None = None
