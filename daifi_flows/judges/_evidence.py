"""What goes wrong in a review: messages that are dropped, and misbehaviour anyone can check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

from daifi_flows.cnft import Noun, Uint, VoteCommit, VoteReveal

__all__ = ["UNSIGNED", "Ballots", "Complaint", "Evidence", "find_evidence", "two_of"]

Ballots: TypeAlias = Mapping[tuple[int, int], tuple[VoteCommit, ...]]
"""Distinct commits by seat and wave, at most two each."""


UNSIGNED: Final = bytes(96)
"""In the place of a commit's signature that came only as a part of an aggregate: it is no evidence
in itself."""


class Complaint(Noun):
    """A message that was dropped. Anyone could have forged it, so nobody is punished for it.

    ``kind`` is ``unknown-seat``, ``wrong-task``, ``bad-signature``, ``bad-share``, ``conflicted``,
    ``early-commit``, ``late-commit``, ``early-reveal``, ``late-reveal``, ``unmatched-reveal``,
    ``early-partial`` or ``bad-partial``; ``seat`` is absent when the message names none of the
    committee's.
    """

    kind: str
    seat: Uint | None = None


class Evidence(Noun):
    """Proof, checkable by anyone, that a seat broke the protocol.

    ``equivocation``: two commits signed by ``seat`` for one subject and wave.
    ``copy``: ``commits[0]``, signed by ``seat``, repeats the commitment of ``commits[1]``, which
    ``opening`` shows to be another seat's.
    ``false-accusation``: ``opening`` opens ``commits[0]``, signed by ``seat``, and rejects a chunk
    of an output that the review's attestation accepts.
    ``false-acceptance``: it accepts an output, checked as a whole, that the attestation rejects
    for sure.
    """

    kind: str
    seat: Uint
    commits: tuple[VoteCommit, ...]
    opening: VoteReveal | None = None


def two_of(commits: tuple[VoteCommit, ...]) -> tuple[VoteCommit, ...]:
    """The two smallest of distinct commits, signed ones before others of the same commitment: a
    choice that does not depend on arrival."""
    distinct = {item.commitment: item for item in sorted(commits, key=lambda c: c.signature)}
    return tuple(distinct[key] for key in sorted(distinct)[:2])


def find_evidence(
    ballots: Ballots,
    late: Ballots,
    reveals: Mapping[tuple[int, int], VoteReveal],
    *,
    false_kind: str,
    false_votes: Mapping[int, VoteReveal],
) -> tuple[Evidence, ...]:
    """Provable misbehaviour, in one order; of a kind, one proof a seat.

    Args:
        late: commits that came after the set was closed: they count for nothing else.
        false_votes: openings of seats that are of kind ``false_kind``.
    """
    found: dict[tuple[str, int], Evidence] = {}
    for slot in sorted({*ballots, *late}):
        kept = two_of((*ballots.get(slot, ()), *late.get(slot, ())))
        if len(kept) == 2:
            found.setdefault(
                ("equivocation", slot[0]),
                Evidence(kind="equivocation", seat=slot[0], commits=kept),
            )
    for slot, reveal in sorted(reveals.items()):
        theirs = ballots[slot][0]
        for (seat, _), kept in sorted(ballots.items()):
            copies = [item for item in kept if item.commitment == theirs.commitment]
            if seat != slot[0] and copies:
                found.setdefault(
                    ("copy", seat),
                    Evidence(kind="copy", seat=seat, commits=(copies[0], theirs), opening=reveal),
                )
    for seat, reveal in sorted(false_votes.items()):
        commit = ballots[seat, reveal.vote.wave][0]
        found.setdefault(
            (false_kind, seat),
            Evidence(kind=false_kind, seat=seat, commits=(commit,), opening=reveal),
        )
    return tuple(
        found[key]
        for key in sorted(found)
        if all(commit.signature != UNSIGNED for commit in found[key].commits)
    )
