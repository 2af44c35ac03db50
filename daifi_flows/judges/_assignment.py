"""Who checks which part of an output: a function of the review's beacon that nobody can steer.

The beacon is a threshold signature over the review's subject: unique, and unknown to everybody
until a quorum of seats has released its shares, which each seat does for one subject an execution.
So a node is bound to its output before anybody can know who looks at which part of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from daifi_flows.cnft import Committee, Subject
from daifi_flows.encoding import keccak256

__all__ = ["conflicted", "excluded", "first_asked", "order", "replacements", "seed_of"]


def seed_of(signature: bytes) -> bytes:
    """The review's randomness, 32 bytes: Keccak-256 of the group's signature."""
    return keccak256(signature)


def conflicted(committee: Committee, subject: Subject) -> frozenset[int]:
    """Seats whose account or operator is the executing node's."""
    parties = {subject.node, subject.operator}
    return frozenset(
        seat.index for seat in committee.seats if parties & {seat.account, seat.interest}
    )


def excluded(committee: Committee, subject: Subject) -> frozenset[int]:
    """The node's own seats, which do not judge its work where others exist.

    Left out they are no worse than silent ones, and the protocol lives with ``f`` of those. Where
    more than ``f`` seats are the node's, too few others are left for a quorum: then they take part,
    last in every order, and the ledger's record of operators shows it to everybody.

    Seats of who runs the node only come last. Who that is, the node says by itself: it could name
    whom it likes, and with three honest seats left out, six lying ones keep any quorum from it.
    """
    found = frozenset(
        seat.index for seat in committee.seats if subject.node in (seat.account, seat.interest)
    )
    return found if len(found) <= committee.faults else frozenset()


def order(committee: Committee, subject: Subject, seed: bytes, chunk: int) -> tuple[int, ...]:
    """All seats in the order in which they are asked about a chunk.

    Uniform (each seat draws ``keccak256(tag ‖ seed ‖ chunk ‖ seat)``), but second seats of an
    operator come after all first ones, third ones after those, and conflicted seats last.
    """
    last = conflicted(committee, subject)
    tag = b"daifi/assign/1" + seed + chunk.to_bytes(2, "big")
    draws = {seat.index: keccak256(tag + seat.index.to_bytes(2, "big")) for seat in committee.seats}
    taken: Counter[str] = Counter()
    ranks: dict[int, tuple[bool, int, bytes]] = {}
    for index in sorted(draws, key=draws.__getitem__):
        interest = committee.seats[index].interest
        ranks[index] = (index in last, taken[interest], draws[index])
        taken[interest] += 1
    return tuple(sorted(ranks, key=ranks.__getitem__))


def first_asked(committee: Committee, subject: Subject, seed: bytes) -> tuple[tuple[int, ...], ...]:
    """For each chunk the f+1 seats that check it first: at least one of them is honest."""
    shut = excluded(committee, subject)
    return tuple(
        tuple(seat for seat in order(committee, subject, seed, chunk) if seat not in shut)[
            : committee.faults + 1
        ]
        for chunk in range(subject.chunks)
    )


def replacements(
    committee: Committee,
    subject: Subject,
    seed: bytes,
    asked: Sequence[Collection[int]],
    silent: Collection[int],
) -> Mapping[int, tuple[int, ...]]:
    """Who is asked next about chunks that fewer than f+1 seats have answered for.

    Args:
        asked: for each chunk the seats asked so far.
        silent: seats that did not answer.

    Returns:
        The chunks of each seat to ask; nothing when every chunk has its answers, or nobody is left.
    """
    shut = excluded(committee, subject)
    found: dict[int, list[int]] = {}
    for chunk, before in enumerate(asked):
        short = committee.faults + 1 - len(set(before) - set(silent))
        if short <= 0:
            continue
        rest = (
            seat
            for seat in order(committee, subject, seed, chunk)
            if seat not in shut and seat not in before and seat not in silent
        )
        for seat, _ in zip(rest, range(short), strict=False):
            found.setdefault(seat, []).append(chunk)
    return {seat: tuple(chunks) for seat, chunks in sorted(found.items())}
