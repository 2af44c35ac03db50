"""The committee's protocol as a pure reducer: beacon, commits, reveals, tally, signature.

A review moves through phases. In each, the state depends on the *set* of messages seen, never on
their order or repetition, so that two honest observers of one set agree to the byte:

1. ``BEACON``: seats release shares of the group's signature over the subject. The combined
   signature is unique; it decides whether the output is reviewed and who looks at which chunk. An
   output that was not drawn goes to ``SIGN`` at once.
2. ``COMMIT``: each seat that is asked signs a salted hash of its vote, which nobody can read or
   copy. Seats that stay silent are replaced in further waves.
3. ``REVEAL``: the set of commits is closed; seats open them. A vote names its seat, so another
   seat's opening never fits a copied commitment.
4. ``FULL_COMMIT``, ``FULL_REVEAL``: the same once more, by all seats, where a chunk was rejected by
   one seat or accepted by fewer than f+1.
5. ``SIGN``: the outcome is a function of the openings, and every honest seat signs the same
   attestation bytes once. Two quorums of ``⌊(n+f)/2⌋+1`` share an honest seat, so two conflicting
   attestations cannot both exist (docs of Committee; Bracha & Toueg 1985).

No Ray, clock or I/O here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from daifi_flows.cnft import (
    FULL_WAVE,
    SURE_PPM,
    Attestation,
    Basis,
    ChunkFinding,
    Committee,
    Decision,
    Seat,
    Subject,
    VoteChoice,
    VoteCommit,
    VoteReveal,
)
from daifi_flows.errors import CommitteeError
from daifi_flows.judges._assignment import excluded, first_asked, seed_of
from daifi_flows.judges._batch import all_signed, together_signed
from daifi_flows.judges._beacon import Beacon, aggregated, is_signature, right_one
from daifi_flows.judges._evidence import UNSIGNED, Complaint, Evidence, find_evidence, two_of
from daifi_flows.judges._record import Look
from daifi_flows.judges._tally import Tally, disputed, tally_of
from daifi_flows.keys import verify_bls
from daifi_flows.review_rate import drawn_for_review

__all__ = ["Phase", "ReviewState"]

Slot = tuple[int, int]
"""Seat and wave."""


class Phase(StrEnum):
    """Where a review stands."""

    BEACON = "beacon"
    COMMIT = "commit"
    REVEAL = "reveal"
    FULL_COMMIT = "full-commit"
    FULL_REVEAL = "full-reveal"
    SIGN = "sign"


_ORDER = {phase: number for number, phase in enumerate(Phase)}


@dataclass(frozen=True)
class ReviewState:
    """Everything known about one review. Every method returns a new state; begin with
    :meth:`start`.

    Attributes:
        digest: the subject's.
        shut: seats that do not judge this node's work.
        light: shares of the beacon, and the beacon once there is a quorum.
        commits: per seat and wave, distinct validly signed commits (two are kept: proof enough).
        late: commits that came after their set was closed; evidence only, never counted.
    """

    subject: Subject
    committee: Committee
    digest: bytes
    shut: frozenset[int]
    phase: Phase = Phase.BEACON
    light: Beacon = field(default_factory=Beacon)
    commits: Mapping[Slot, tuple[VoteCommit, ...]] = field(default_factory=lambda: {})
    late: Mapping[Slot, tuple[VoteCommit, ...]] = field(default_factory=lambda: {})
    reveals: Mapping[Slot, VoteReveal] = field(default_factory=lambda: {})
    partials: Mapping[int, bytes] = field(default_factory=lambda: {})
    complaints: frozenset[tuple[str, int]] = frozenset()

    @classmethod
    def start(cls, subject: Subject, committee: Committee) -> ReviewState:
        """A review nobody has said anything in.

        Raises:
            CommitteeError: the subject names another committee, or this one has no group key.
        """
        if subject.committee != committee.digest:
            raise CommitteeError("the review names another committee: ask that one")
        if subject.epoch != committee.epoch:
            raise CommitteeError("the review names another epoch than its committee's")
        if committee.group_key is None or any(seat.share is None for seat in committee.seats):
            raise CommitteeError("the committee has no group key: its reviews have no beacon")
        return cls(subject, committee, subject.digest, excluded(committee, subject))

    # The beacon

    def add_share(self, index: int, share: bytes) -> ReviewState:
        """Take a seat's share of the beacon; see :meth:`Beacon.add`."""
        if self._seat(index) is None:
            return self._complain("unknown-seat", -1)
        if self.beacon is not None:
            return self
        light, bad = self.light.add(self.committee, self.subject.beacon_message(), index, share)
        state = replace(self, light=light)
        for seat in bad:
            state = state._complain("bad-share", seat)
        return state._lit()

    def with_beacon(self, signature: bytes) -> ReviewState:
        """Take the combined signature as it is, from somebody who collected the shares.

        Raises:
            CommitteeError: it is not the group's.
        """
        if self.beacon is not None:
            return self
        light = self.light.given(self.committee, self.subject.beacon_message(), signature)
        return replace(self, light=light)._lit()

    def shared(self, index: int, share: bytes) -> bool:
        """Whether this is the seat's share of the beacon."""
        seat, message = self._seat(index), self.subject.beacon_message()
        if seat is None or not is_signature(share):
            return False
        return verify_bls(seat.share or b"", message, share)

    def _lit(self) -> ReviewState:
        if self.beacon is None:
            return self
        return replace(self, phase=Phase.COMMIT if self.drawn else Phase.SIGN)

    @property
    def beacon(self) -> bytes | None:
        """The group's signature over the subject, 96 bytes, once it is known."""
        return self.light.signature

    @property
    def seed(self) -> bytes:
        """The review's randomness, 32 bytes.

        Raises:
            CommitteeError: too few shares have come.
        """
        if self.beacon is None:
            raise CommitteeError("the review's beacon is not known yet")
        return seed_of(self.beacon)

    @property
    def drawn(self) -> bool:
        """Whether the lottery had the output reviewed."""
        return drawn_for_review(self.seed, self.subject.review_ppm)

    @property
    def first_asked(self) -> tuple[tuple[int, ...], ...]:
        """The seats of each chunk that are asked first."""
        return first_asked(self.committee, self.subject, self.seed)

    # Commits

    def add_commit(self, commit: VoteCommit) -> ReviewState:
        """See :meth:`add_commits`."""
        return self.add_commits((commit,))

    def add_commits(self, commits: Iterable[VoteCommit]) -> ReviewState:
        """Take signed commits; of a seat that signs two different ones in a wave, none counts.

        Their signatures are checked in one batch, and one by one only when that fails.
        """
        state, fresh = self, list[tuple[VoteCommit, Seat]]()
        for commit in commits:
            seat, slot = state._seat(commit.seat), (commit.seat, commit.wave)
            if seat is None:
                state = state._complain("unknown-seat", -1)
            elif commit.subject != state.digest:
                state = state._complain("wrong-task", commit.seat)
            elif commit not in state.commits.get(slot, ()) + state.late.get(slot, ()):
                fresh.append((commit, seat))
        batch = [(seat.public, commit.message(), commit.signature) for commit, seat in fresh]
        sound = all_signed(batch)
        for (commit, _), signed in zip(fresh, batch, strict=True):
            if sound or verify_bls(*signed):
                state = state._take(commit)
            else:
                state = state._complain("bad-signature", commit.seat)
        return state

    def add_closed(self, look: Look) -> ReviewState:
        """Take a set of commits that somebody has closed, all under one signature.

        Raises:
            CommitteeError: its seats did not sign just this set.
        """
        commits = [
            VoteCommit(
                seat=pledge.seat,
                subject=self.digest,
                wave=pledge.wave,
                commitment=pledge.commitment,
                signature=UNSIGNED,
            )
            for pledge in look.commits
        ]
        seats = [self._seat(commit.seat) for commit in commits]
        items = [
            (seat.public, commit.message())
            for seat, commit in zip(seats, commits, strict=True)
            if seat is not None
        ]
        if None in seats or (commits and not together_signed(items, look.signature or b"")):
            raise CommitteeError("the set of commits is not what its seats signed")
        state = self
        for commit in commits:
            state = state._take(commit)
        return state

    def _take(self, commit: VoteCommit) -> ReviewState:
        slot = (commit.seat, commit.wave)
        due = Phase.FULL_COMMIT if commit.wave == FULL_WAVE else Phase.COMMIT
        if commit.seat in self.shut:
            return self._complain("conflicted", commit.seat)
        if _ORDER[self.phase] < _ORDER[due]:
            return self._complain("early-commit", commit.seat)
        if self.phase is due:
            kept = two_of((*self.commits.get(slot, ()), commit))
            return replace(self, commits={**self.commits, slot: kept})
        kept = two_of((*self.late.get(slot, ()), commit))
        return replace(self, late={**self.late, slot: kept})._complain("late-commit", commit.seat)

    def committed(self, *, full: bool) -> dict[Slot, VoteCommit]:
        """The commits that count, of the first look or of all seats: those that are alone in their
        seat's wave."""
        return {
            slot: kept[0]
            for slot, kept in sorted(self.commits.items())
            if len(kept) == 1 and (slot[1] == FULL_WAVE) == full
        }

    def commit_set(self, *, full: bool) -> tuple[VoteCommit, ...]:
        """All kept commits in one order, equivocations included: what seats lock."""
        return tuple(
            commit
            for slot, kept in sorted(self.commits.items())
            for commit in kept
            if (slot[1] == FULL_WAVE) == full
        )

    def close_commits(self) -> ReviewState:
        """Fix the set of commits. From here on no vote of this look can be added, only opened.

        Raises:
            CommitteeError: the beacon is not known.
        """
        if self.phase is Phase.BEACON:
            raise CommitteeError("nobody can vote before the review's beacon is known")
        following = {Phase.COMMIT: Phase.REVEAL, Phase.FULL_COMMIT: Phase.FULL_REVEAL}
        return replace(self, phase=following.get(self.phase, self.phase))

    # Reveals

    def add_reveal(self, reveal: VoteReveal) -> ReviewState:
        """Take an opening; only one that fits its seat's commit counts."""
        vote = reveal.vote
        slot, full = (vote.seat, vote.wave), vote.wave == FULL_WAVE
        if self._seat(vote.seat) is None:
            return self._complain("unknown-seat", -1)
        due = Phase.FULL_REVEAL if full else Phase.REVEAL
        if _ORDER[self.phase] < _ORDER[due]:
            return self._complain("early-reveal", vote.seat)
        if self.reveals.get(slot) == reveal:
            return self
        if vote.subject != self.digest or vote.findings[-1].chunk >= self.subject.chunks:
            return self._complain("wrong-task", vote.seat)
        kept = self.commits.get(slot, ())
        if len(kept) != 1 or kept[0].commitment != vote.commitment(reveal.salt):
            return self._complain("unmatched-reveal", vote.seat)
        if self.phase is not due:
            return self._complain("late-reveal", vote.seat)
        return replace(self, reveals={**self.reveals, slot: reveal})

    def reveal_set(self, *, full: bool) -> tuple[VoteReveal, ...]:
        """Counted openings in one order."""
        return tuple(
            reveal
            for slot, reveal in sorted(self.reveals.items())
            if (slot[1] == FULL_WAVE) == full
        )

    def close_reveals(self) -> ReviewState:
        """Fix the set of openings: the review goes before all seats where a chunk is disputed, and
        its outcome is known where none is.

        Raises:
            CommitteeError: the commits are still open.
        """
        if self.phase in (Phase.BEACON, Phase.COMMIT, Phase.FULL_COMMIT):
            raise CommitteeError("the commits must be closed before the reveals")
        if self.phase is Phase.REVEAL and self.disputed:
            return replace(self, phase=Phase.FULL_COMMIT)
        return replace(self, phase=Phase.SIGN)

    # The outcome

    def findings(self, *, full: bool) -> dict[int, dict[int, ChunkFinding]]:
        """Opened findings of a look, by chunk and seat; of a seat's several the earliest."""
        found: dict[int, dict[int, ChunkFinding]] = {}
        for reveal in self.reveal_set(full=full):
            for finding in reveal.vote.findings:
                found.setdefault(finding.chunk, {}).setdefault(reveal.vote.seat, finding)
        return found

    @property
    def disputed(self) -> tuple[int, ...]:
        """Chunks that go, or went, before all seats."""
        return disputed(self.subject, self.committee, self.findings(full=False))

    @property
    def answered(self) -> int:
        """How many seats' findings count on the disputed chunk with the fewest; all seats where no
        chunk is disputed."""
        first, second = self.findings(full=False), self.findings(full=True)
        heard = [len({*first.get(c, {}), *second.get(c, {})}) for c in self.disputed]
        return min(heard, default=len(self.committee.seats))

    @property
    def full_asked(self) -> dict[int, tuple[int, ...]]:
        """The chunks on which each seat is asked when they go before all: those it has no counted
        finding on."""
        first, chunks = self.findings(full=False), self.disputed
        asked = {
            seat.index: tuple(c for c in chunks if seat.index not in first.get(c, {}))
            for seat in self.committee.seats
            if seat.index not in self.shut
        }
        return {seat: open for seat, open in asked.items() if open}

    @property
    def basis(self) -> Basis:
        """What the outcome rests on."""
        return Basis.REVIEWED if self.drawn else Basis.WAIVED

    def tally(self) -> Tally:
        """Deterministic outcome of the openings so far; of a waived review, acceptance unseen."""
        if self.beacon is not None and not self.drawn:
            return Tally(Decision.ACCEPTED, 0, ())
        return tally_of(
            self.subject, self.committee, self.findings(full=False), self.findings(full=True)
        )

    def message(self) -> bytes:
        """What honest seats sign, once the outcome is fixed.

        Raises:
            CommitteeError: the reveals are still open.
        """
        if self.phase is not Phase.SIGN:
            raise CommitteeError("the outcome is not fixed before the reveals are closed")
        tally = self.tally()
        return self.subject.message(tally.decision, tally.confidence_ppm, self.basis)

    def add_partial(self, index: int, signature: bytes) -> ReviewState:
        """Take a seat's signature. It is checked when aggregated, or at once when the seat sent
        another before (of two different ones at most one is right)."""
        seat = self._seat(index)
        if seat is None:
            return self._complain("unknown-seat", -1)
        if self.phase is not Phase.SIGN:
            return self._complain("early-partial", index)
        if not is_signature(signature):
            return self._complain("bad-partial", index)
        if (before := self.partials.get(index)) == signature:
            return self
        if before is None and ("bad-partial", index) not in self.complaints:
            return replace(self, partials={**self.partials, index: signature})
        good = right_one(seat.public, self.message(), before, signature)
        kept = {key: item for key, item in self.partials.items() if key != index}
        if good is not None:
            kept[index] = good
        return replace(self, partials=kept)._complain("bad-partial", index)

    def attested(self) -> tuple[ReviewState, Attestation | None]:
        """Aggregate the partial signatures; drop the bad ones without redoing the rest.

        Returns:
            the state without the bad partials, and the attestation once a quorum signed.
        """
        message, tally, state = self.message(), self.tally(), self
        partials, signature = aggregated(self.committee, message, self.partials)
        for index in self.partials.keys() - partials.keys():
            state = state._complain("bad-partial", index)
        state = replace(state, partials=partials)
        if signature is None:
            return state, None
        subject = self.subject
        return state, Attestation(
            ledger_id=subject.ledger_id,
            epoch=subject.epoch,
            task_id=subject.task_id,
            attempt=subject.attempt,
            node=subject.node,
            output_cid=subject.output_cid,
            proof_cid=subject.proof_cid,
            decision=tally.decision,
            confidence_ppm=tally.confidence_ppm,
            basis=self.basis,
            signers=sum(1 << index for index in state.partials),
            signature=signature,
        )

    # What went wrong

    def evidence(self) -> tuple[Evidence, ...]:
        """Provable misbehaviour, in one order."""
        kind, wrong = self._false_votes()
        votes: dict[int, VoteReveal] = {}
        for slot, reveal in sorted(self.reveals.items()):
            if any(finding.decision is wrong for finding in reveal.vote.findings):
                votes.setdefault(slot[0], reveal)
        return find_evidence(
            self.commits, self.late, self.reveals, false_kind=kind, false_votes=votes
        )

    def _false_votes(self) -> tuple[str, VoteChoice | None]:
        """Which votes the outcome proves wrong, and what that is called.

        A rejection does not say which chunk was wrong: it convicts nobody where there are several.
        """
        if self.phase is not Phase.SIGN:
            return "", None
        tally = self.tally()
        if tally.decision is Decision.ACCEPTED:
            return "false-accusation", VoteChoice.REJECT
        sure = tally.decision is Decision.REJECTED and tally.confidence_ppm >= SURE_PPM
        if sure and self.subject.chunks == 1:
            return "false-acceptance", VoteChoice.ACCEPT
        return "", None

    def dropped(self) -> tuple[Complaint, ...]:
        """Kinds of messages that were dropped, in one order."""
        return tuple(
            Complaint(kind=kind, seat=seat if seat >= 0 else None)
            for kind, seat in sorted(self.complaints)
        )

    def _seat(self, index: object) -> Seat | None:
        if isinstance(index, int) and 0 <= index < len(self.committee.seats):
            return self.committee.seats[index]
        return None

    def _complain(self, kind: str, seat: int) -> ReviewState:
        return replace(self, complaints=self.complaints | {(kind, seat)})
