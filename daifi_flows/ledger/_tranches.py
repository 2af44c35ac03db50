"""Money that becomes free later: amounts by due time, in a list that stays short.

Due times are rounded up to an eighth of the waiting time, and amounts with one due time are added
up, so an account never holds more than nine tranches of one waiting time, however often it is
paid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from daifi_flows.cnft import Noun, Uint, Wei

__all__ = ["Tranche", "due_ms", "matured", "taken", "total_wei", "with_tranche"]

_GRAINS: Final = 8


class Tranche(Noun):
    """An amount that is free from ``due_ms`` on (Unix milliseconds)."""

    due_ms: Uint
    amount_wei: Wei


def due_ms(now_ms: int, wait_ms: int) -> int:
    """When money that starts to wait now is free: ``wait_ms`` later, up to an eighth more."""
    grain = max(wait_ms // _GRAINS, 1)
    return -(-(now_ms + wait_ms) // grain) * grain


def total_wei(tranches: Sequence[Tranche]) -> int:
    """All that waits."""
    return sum(tranche.amount_wei for tranche in tranches) if tranches else 0


def with_tranche(
    tranches: Sequence[Tranche], due_at_ms: int, amount_wei: int
) -> tuple[Tranche, ...]:
    """With an amount more, by due time."""
    amounts = {tranche.due_ms: tranche.amount_wei for tranche in tranches}
    amounts[due_at_ms] = amounts.get(due_at_ms, 0) + amount_wei
    return tuple(Tranche(due_ms=due, amount_wei=amounts[due]) for due in sorted(amounts))


def matured(tranches: Sequence[Tranche], now_ms: int) -> tuple[int, tuple[Tranche, ...]]:
    """What is free by now, in wei, and what still waits."""
    waiting = tuple(tranche for tranche in tranches if tranche.due_ms > now_ms)
    return total_wei(tranches) - total_wei(waiting), waiting


def taken(tranches: Sequence[Tranche], amount_wei: int) -> tuple[int, tuple[Tranche, ...]]:
    """Take up to an amount away, earliest due first; how much that was, and what is left.

    Earliest first, because what stays is then always enough for every payment that can still be
    taken back: taking a payment from a later tranche would let an earlier one go free instead.
    """
    missing, left = amount_wei, list[Tranche]()
    for tranche in tranches:
        part = min(missing, tranche.amount_wei)
        missing -= part
        if part < tranche.amount_wei:
            rest = tranche.amount_wei - part
            left.append(Tranche(due_ms=tranche.due_ms, amount_wei=rest))
    return amount_wei - missing, tuple(left)
