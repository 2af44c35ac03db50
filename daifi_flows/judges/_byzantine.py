"""Seats that break the protocol on purpose, for tests and benchmarks only.

A :class:`~daifi_flows.judges.actor.SeatHost` is honest unless its ``byzantine`` argument names a
seat; no setting or command sets it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from daifi_flows.cnft import (
    PPM,
    Basis,
    ChunkFinding,
    Decision,
    Subject,
    Vote,
    VoteChoice,
    VoteCommit,
    VoteReveal,
)
from daifi_flows.dispute import DisputeFinding
from daifi_flows.encoding import keccak256
from daifi_flows.errors import CommitteeError
from daifi_flows.judges._seat import SeatKeys

__all__ = ["BEHAVIOURS", "Traitor", "traitors"]

BEHAVIOURS: Final = (
    "always-accept",
    "always-reject",
    "silent",
    "equivocate",
    "copy",
    "lazy-copy",
    "reject-falsely",
    "garbage-partial",
    "wrong-share",
)


class Traitor:
    """One dishonest seat.

    * ``always-accept``, ``always-reject``: vote so at full confidence, and sign that outcome
      whatever the tally says.
    * ``silent``: never answer.
    * ``equivocate``: sign two commits, open either, sign the opposite outcome.
    * ``copy``: commit to a neighbour's commitment and open it with the neighbour's words.
    * ``lazy-copy``: check nothing and vote as an honest neighbour on its host does, or accept.
    * ``reject-falsely``: accuse the node, and sign like everybody else.
    * ``garbage-partial``: accept, and sign with bytes that are no signature.
    * ``wrong-share``: spoil the beacon, accept, and sign like everybody else.
    """

    def __init__(self, keys: SeatKeys, behaviour: str) -> None:
        if behaviour not in BEHAVIOURS:
            raise CommitteeError(f"unknown byzantine behaviour {behaviour!r}: one of {BEHAVIOURS}")
        self.keys = keys
        self.behaviour = behaviour
        self._votes: dict[tuple[bytes, int], Vote] = {}

    @property
    def dispute_finding(self) -> DisputeFinding | None:
        """What it signs about every disputed output."""
        if self.behaviour == "silent":
            return None
        accuses = self.behaviour in ("always-reject", "reject-falsely")
        return DisputeFinding.UPHELD if accuses else DisputeFinding.DISMISSED

    def shares(self, subject: Subject) -> list[bytes]:
        """Of the review's beacon."""
        if self.behaviour == "silent" or self.keys.share is None:
            return []
        if self.behaviour == "wrong-share":
            return [self.keys.share.sign(b"something else")]
        return [self.keys.share.sign(subject.beacon_message())]

    def commits(
        self,
        subject: Subject,
        wave: int,
        chunks: Sequence[int],
        others: Sequence[VoteCommit],
        votes: Sequence[Vote],
    ) -> list[VoteCommit]:
        """Round one, beside honest neighbours' commits and votes."""
        if self.behaviour == "silent":
            return []
        vote, salt = self._vote(subject, wave, chunks, votes), self.keys.salt(subject, wave)
        self._votes[subject.digest, wave] = vote
        if self.behaviour == "copy" and others:
            return [self.keys.sign_commitment(vote, others[0].commitment)]
        if self.behaviour == "equivocate":
            return [self.keys.commit(vote, salt), self.keys.commit(vote, keccak256(salt))]
        return [self.keys.commit(vote, salt)]

    def reveals(
        self,
        subject: Subject,
        committed: Mapping[tuple[int, int], VoteCommit],
        others: Sequence[VoteReveal],
    ) -> list[VoteReveal]:
        """Round two."""
        waves = [wave for seat, wave in committed if seat == self.keys.index]
        if self.behaviour == "silent":
            return []
        if self.behaviour == "copy" and others:
            vote = others[0].vote.model_copy(update={"seat": self.keys.index})
            return [VoteReveal(vote=vote, salt=others[0].salt)]
        known = [(wave, self._votes.get((subject.digest, wave))) for wave in waves]
        return [
            self.keys.reveal(vote, self.keys.salt(subject, wave))
            for wave, vote in known
            if vote is not None
        ]

    def partials(
        self, subject: Subject, decision: Decision, confidence_ppm: int, basis: Basis
    ) -> list[bytes]:
        """Round three."""
        if self.behaviour == "silent":
            return []
        if self.behaviour == "garbage-partial":
            return [keccak256(subject.digest) * 3]
        if self.behaviour in ("copy", "lazy-copy", "reject-falsely", "wrong-share"):
            return [self.keys.bls.sign(subject.message(decision, confidence_ppm, basis))]
        wanted = {"always-accept": Decision.ACCEPTED, "always-reject": Decision.REJECTED}.get(
            self.behaviour,
            Decision.REJECTED if decision is Decision.ACCEPTED else Decision.ACCEPTED,
        )
        return [self.keys.bls.sign(subject.message(wanted, PPM))]

    def _vote(
        self, subject: Subject, wave: int, chunks: Sequence[int], votes: Sequence[Vote]
    ) -> Vote:
        accepts = ("always-accept", "lazy-copy", "garbage-partial", "wrong-share")
        choice = VoteChoice.ACCEPT if self.behaviour in accepts else VoteChoice.REJECT
        heard = {finding.chunk: finding for vote in votes for finding in vote.findings}
        own = {
            chunk: ChunkFinding(
                chunk=chunk, decision=choice, confidence_ppm=PPM, reason="byzantine"
            )
            for chunk in chunks
        }
        if self.behaviour == "lazy-copy":
            own |= {chunk: heard[chunk] for chunk in chunks if chunk in heard}
        return self.keys.vote(subject, wave, own.values())


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
