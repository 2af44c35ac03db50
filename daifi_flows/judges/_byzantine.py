"""Seats that break the protocol on purpose, for tests and benchmarks only.

A :class:`~daifi_flows.judges.actor.SeatHost` is honest unless its ``byzantine`` argument names a
seat; no setting or command sets it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from daifi_flows.cnft import (
    PPM,
    ChunkFinding,
    Decision,
    Subject,
    Vote,
    VoteChoice,
    VoteCommit,
    VoteReveal,
)
from daifi_flows.encoding import keccak256
from daifi_flows.errors import CommitteeError
from daifi_flows.judges._seat import SeatKeys

__all__ = ["BEHAVIOURS", "Traitor", "traitors"]

BEHAVIOURS: Final = ("always-accept", "always-reject", "silent", "equivocate", "copy")


class Traitor:
    """One dishonest seat.

    * ``always-accept``, ``always-reject``: vote so at full confidence, and sign that outcome
      whatever the tally says.
    * ``silent``: never answer.
    * ``equivocate``: sign two commits, open either, sign the opposite outcome.
    * ``copy``: commit to a neighbour's commitment and open it with the neighbour's words.
    """

    def __init__(self, keys: SeatKeys, behaviour: str) -> None:
        if behaviour not in BEHAVIOURS:
            raise CommitteeError(f"unknown byzantine behaviour {behaviour!r}: one of {BEHAVIOURS}")
        self.keys = keys
        self.behaviour = behaviour

    def commits(self, subject: Subject, others: Sequence[VoteCommit]) -> list[VoteCommit]:
        """Round one."""
        if self.behaviour == "silent":
            return []
        vote, salt = self._vote(subject), self.keys.salt(subject, 0)
        if self.behaviour == "copy" and others:
            return [self.keys.sign_commitment(vote, others[0].commitment)]
        if self.behaviour == "equivocate":
            return [self.keys.commit(vote, salt), self.keys.commit(vote, keccak256(salt))]
        return [self.keys.commit(vote, salt)]

    def reveals(self, subject: Subject, others: Sequence[VoteReveal]) -> list[VoteReveal]:
        """Round two."""
        if self.behaviour == "silent":
            return []
        if self.behaviour == "copy" and others:
            vote = others[0].vote.model_copy(update={"seat": self.keys.index})
            return [VoteReveal(vote=vote, salt=others[0].salt)]
        return [self.keys.reveal(self._vote(subject), self.keys.salt(subject, 0))]

    def partials(self, subject: Subject, decision: Decision, confidence_ppm: int) -> list[bytes]:
        """Round three."""
        if self.behaviour == "silent":
            return []
        if self.behaviour == "copy":
            return [self.keys.bls.sign(subject.message(decision, confidence_ppm))]
        wanted = {"always-accept": Decision.ACCEPTED, "always-reject": Decision.REJECTED}.get(
            self.behaviour,
            Decision.REJECTED if decision is Decision.ACCEPTED else Decision.ACCEPTED,
        )
        return [self.keys.bls.sign(subject.message(wanted, PPM))]

    def _vote(self, subject: Subject) -> Vote:
        choice = VoteChoice.ACCEPT if self.behaviour == "always-accept" else VoteChoice.REJECT
        finding = ChunkFinding(chunk=0, decision=choice, confidence_ppm=PPM, reason="byzantine")
        return self.keys.vote(subject, 0, [finding])


def traitors(keys: Mapping[int, SeatKeys], byzantine: Mapping[int, str]) -> dict[int, Traitor]:
    """The dishonest among these seats.

    Raises:
        CommitteeError: an unknown behaviour.
    """
    return {
        index: Traitor(keys[index], behaviour)
        for index, behaviour in byzantine.items()
        if index in keys
    }
