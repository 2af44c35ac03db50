"""What a seat computes from a client's words: a closed set of commits, a whole record."""

from __future__ import annotations

from dataclasses import replace

from daifi_flows.cnft import Committee, Subject
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
        CommitteeError: seats did not sign a set of commits.
    """
    for look in record.looks:
        state = state.add_closed(look).close_commits()
        for reveal in look.reveals:
            state = state.add_reveal(reveal)
        state = state.close_reveals()
    return state
