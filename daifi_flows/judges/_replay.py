"""What a seat computes from a client's words: a closed set of commits, a whole record."""

from __future__ import annotations

from dataclasses import replace

from daifi_flows.cnft import FULL_WAVE, Committee, Subject
from daifi_flows.errors import CommitteeError
from daifi_flows.judges._committee import Phase, ReviewState
from daifi_flows.judges._record import Look, Record

__all__ = ["checked_commits", "looks_again", "replayed"]


def checked_commits(subject: Subject, committee: Committee, look: Look) -> ReviewState:
    """A state that holds a set of commits, of the first look or of all seats, and nothing else:
    what a seat opens its vote against.

    Raises:
        CommitteeError: its seats did not sign just this set.
    """
    start = ReviewState.start(subject, committee)
    phase = Phase.FULL_COMMIT if look.full else Phase.COMMIT
    return replace(start, phase=phase).add_closed(look)


def replayed(subject: Subject, committee: Committee, record: Record) -> ReviewState:
    """The state after these messages, every set closed: what a seat computes before it signs.

    Raises:
        CommitteeError: the beacon is not the group's, or seats did not sign a set of commits.
    """
    start = ReviewState.start(subject, committee).with_beacon(record.beacon)
    return looks_again(start, record)


def looks_again(state: ReviewState, record: Record) -> ReviewState:
    """A state after the looks of a record.

    Raises:
        CommitteeError: seats did not sign a set of commits, a look is out of place, or too few
            seats have answered about a chunk that went before all.
    """
    for look, due in zip(record.looks, (Phase.COMMIT, Phase.FULL_COMMIT), strict=False):
        full = due is Phase.FULL_COMMIT
        if state.phase is not due or any((p.wave == FULL_WAVE) != full for p in look.commits):
            raise CommitteeError("a look of the record is out of place")
        state = state.add_closed(look).close_commits()
        for reveal in look.reveals:
            state = state.add_reveal(reveal)
        state = state.close_reveals()
    # Else whoever carries messages could end any review unproven, by asking nobody.
    if state.phase is Phase.SIGN and state.drawn and state.answered < state.committee.quorum:
        raise CommitteeError("the record leaves the outcome open: too few of all seats answered")
    return state
