"""Going on where an earlier client of the same review died."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from daifi_flows.cnft import Noun
from daifi_flows.errors import CommitteeError, EncodingError
from daifi_flows.judges._committee import Phase, ReviewState
from daifi_flows.judges._messages import OpenReply, unpack
from daifi_flows.judges._record import Look, Record
from daifi_flows.judges._replay import looks_again

__all__ = ["repeated", "told_by"]

N = TypeVar("N", bound=Noun)


def told_by(
    state: ReviewState, replies: Sequence[OpenReply]
) -> tuple[tuple[Look | None, Look | None], Record | None]:
    """What an earlier client got done, as most seats tell it.

    That a host speaks for a seat is known by its share of the beacon. Whether what it tells holds
    must be checked where it is used.

    Returns:
        the sets of commits that votes were opened against, in the first look and before all seats,
        and the record whose outcome was signed.
    """
    heard: set[int] = set()
    counters: tuple[Counter[bytes], Counter[bytes], Counter[bytes]]
    counters = (Counter(), Counter(), Counter())
    for reply in replies:
        mine = {
            index
            for index, share in reply.shares[: 2 * len(state.committee.seats)]
            if index not in heard and state.shared(index, share)
        }
        heard |= mine
        for data, counter in zip((*reply.locked, reply.signed), counters, strict=True):
            if data:
                counter[data] += len(mine)
    first, full, signed = counters
    return (_unpacked(Look, first), _unpacked(Look, full)), _unpacked(Record, signed)


def repeated(state: ReviewState, record: Record) -> ReviewState:
    """The state in which the outcome of a record is known; unchanged if it does not hold."""
    try:
        found = looks_again(state, record)
    except CommitteeError:
        return state
    return found if found.phase is Phase.SIGN else state


def _unpacked(kind: type[N], counter: Counter[bytes]) -> N | None:
    for data, seats in counter.most_common():
        if seats:
            try:
                return unpack(kind, data)
            except EncodingError:
                continue
    return None
