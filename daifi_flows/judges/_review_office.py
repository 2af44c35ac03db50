"""A host's part in reviews: one shared re-execution, one journal, each seat's own words."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from daifi_flows.cnft import (
    FULL_WAVE,
    ChunkFinding,
    Committee,
    Decision,
    ReviewRequest,
    Subject,
    Vote,
    VoteChoice,
)
from daifi_flows.errors import CommitteeError
from daifi_flows.judges._byzantine import Traitor
from daifi_flows.judges._committee import Phase, ReviewState
from daifi_flows.judges._docket import Certifier, docket_fault, execution_of
from daifi_flows.judges._messages import (
    Asked,
    Case,
    CommitReply,
    Docket,
    OpenReply,
    RevealReply,
    SignReply,
    deflate,
    unpack,
)
from daifi_flows.judges._record import Look, Record
from daifi_flows.judges._replay import checked_commits, replayed
from daifi_flows.judges._review_journal import Ballot, ReviewJournal
from daifi_flows.judges._seat import SeatKeys
from daifi_flows.judges.panel import Opinion, Panel, Senses, decide, likelihood_of
from daifi_flows.proofs import Claim, Outcome, Reference, Span, Verdict, spans_of, verify_spans

__all__ = ["ReviewOffice"]

KEPT_FINDINGS: Final = 256
"""Chunks whose finding a host remembers, for its seats that are asked about them later."""

MAX_SUBJECT_BYTES: Final = 4096
MAX_DOCKET_BYTES: Final = 64 * 1024

_log = logging.getLogger(__name__)


class ReviewOffice:
    """The seats of one host in reviews. Thread-safe; every method blocks.

    Args:
        keys: of the seats here.
        traitors: the dishonest among them.
        get_reference: the verifier's copy of the models.
        earlier: see :func:`~daifi_flows.judges._docket.docket_fault`.
        clock_ms: Unix milliseconds, to know a task's deadline by.
    """

    def __init__(
        self,
        committee: Committee,
        keys: Mapping[int, SeatKeys],
        traitors: Mapping[int, Traitor],
        *,
        journal: ReviewJournal,
        get_reference: Callable[[], Reference],
        panel: Panel,
        workdir: Path,
        clock_ms: Callable[[], int],
        earlier: Certifier | None = None,
    ) -> None:
        self.committee = committee
        self.keys = keys
        self._traitors = traitors
        self._honest = {i: own for i, own in keys.items() if i not in traitors}
        self._journal = journal
        self._get_reference = get_reference
        self._panel = panel
        self._workdir = workdir
        self._clock_ms = clock_ms
        self._earlier = earlier
        self._reviewing = threading.Lock()
        self._found: dict[tuple[bytes, int], ChunkFinding] = {}

    # The beacon

    def open(self, subject_bytes: bytes, docket_bytes: bytes) -> OpenReply:
        """Bind the seats here to a subject of this execution, and release their beacon shares.

        A seat is bound to one subject of a (ledger, committee, task, attempt, node) for ever:
        nobody can try several proofs, and take the one whose draw is convenient.

        Raises:
            CommitteeError: the review is for another committee, its deadline has passed, or the
                docket does not show that the node stands behind this proof.
        """
        subject = self._subject(subject_bytes)
        bound = self._bind(subject, unpack(Docket, docket_bytes, MAX_DOCKET_BYTES))
        message, digest = subject.beacon_message(), subject.digest
        shares = [
            (index, share.sign(message))
            for index in bound
            if (share := self.keys[index].share) is not None
        ]
        for index, traitor in self._traitors.items():
            shares += [(index, item) for item in traitor.shares(subject)]
        locks = self._journal.locks(bound, digest)
        signed = self._journal.attested(bound, digest)
        return OpenReply(
            seats=tuple(self.keys),
            shares=tuple(shares),
            locked=(self._locked(locks, 0), self._locked(locks, 1)),
            signed=next((deflate(data) for data in signed.values()), b""),
            refused=None if len(bound) == len(self._honest) else _OTHER_PROOF,
        )

    def _locked(self, locks: Mapping[tuple[int, int], bytes], number: int) -> bytes:
        """A set that votes of a look were opened against, as it travels."""
        names = (name for (_, look), name in locks.items() if look == number)
        found = (self._journal.message(name) for name in names)
        return next((deflate(data) for data in found if data is not None), b"")

    def _subject(self, data: bytes) -> Subject:
        subject = Subject.from_canonical(data, max_bytes=MAX_SUBJECT_BYTES)
        if subject.committee != self.committee.digest:
            raise CommitteeError("the review is for another committee: ask its seats")
        if subject.epoch != self.committee.epoch:
            raise CommitteeError("the review names another epoch than its committee's")
        if self._clock_ms() > subject.deadline_ms:
            raise CommitteeError("the task's deadline has passed: seats say nothing more about it")
        return subject

    def _bind(self, subject: Subject, docket: Docket) -> tuple[int, ...]:
        """The honest seats that take part in this subject's review."""
        fault = docket_fault(subject, docket, self.committee, self._earlier)
        if fault is not None:
            raise CommitteeError(f"the seats take no part in this review: {fault}")
        return self._journal.open(tuple(self._honest), execution_of(subject), subject.digest)

    # Votes

    def commit(
        self, subject_bytes: bytes, beacon: bytes, wave: int, asked: Asked, case: Case
    ) -> CommitReply:
        """Check the chunks that seats here are asked about, once for all of them, and have each
        seat commit to its findings. What a seat has committed to before, it repeats.

        Raises:
            CommitteeError: as for :meth:`open`; the beacon is not the group's, or has the output
                not reviewed; or the case is not the subject's.
        """
        subject = self._subject(subject_bytes)
        if not 0 <= wave <= FULL_WAVE:
            raise CommitteeError(f"a review has no wave {wave}")
        state = ReviewState.start(subject, self.committee).with_beacon(beacon)
        if not state.drawn:
            raise CommitteeError("the lottery has not drawn this output: there is nothing to vote")
        if case.input.cid != case.docket.spec.input_cid:
            raise CommitteeError("the review's input is not the one its spec names: send that one")
        if case.output.cid != subject.output_cid:  # else who sends another accuses the node
            raise CommitteeError("the output is not the one the node signed: send that one")
        spans = spans_of(case.proof)
        # A forged one is wrong, but not by the node's doing: only what the node signed is judged.
        forged = case.proof.header != case.docket.header
        if forged or case.proof.cid != subject.proof_cid or len(spans) != subject.chunks:
            raise CommitteeError("the proof is not the one that the review is about")
        bound = self._bind(subject, case.docket)
        wanted = {
            index: tuple(sorted({c for c in asked[index] if 0 <= c < subject.chunks}))
            for index in bound
            if index in asked and index not in state.shut
        }
        ballots = self._vote(subject, wave, wanted, case, spans)
        commits = [
            self.keys[index].commit(Vote.from_canonical(ballot.vote), ballot.salt)
            for index, ballot in sorted(ballots.items())
        ]
        for index, traitor in self._traitors.items():
            chunks = tuple(asked.get(index, ()))
            if chunks:
                near = [Vote.from_canonical(ballot.vote) for ballot in ballots.values()]
                commits += traitor.commits(subject, wave, chunks, commits, near)
        return CommitReply(
            commits=tuple(commit.canonical() for commit in commits),
            refused=None if len(bound) == len(self._honest) else _OTHER_PROOF,
        )

    def _vote(
        self, subject: Subject, wave: int, wanted: Asked, case: Case, spans: Sequence[Span]
    ) -> dict[int, Ballot]:
        """Journal a vote for every seat that is asked and has none in this wave."""
        digest, look = subject.digest, int(wave == FULL_WAVE)
        with self._reviewing:  # the same request, sent twice, waits here and then remembers
            known = self._journal.ballots(tuple(self._honest), digest)
            locks = self._journal.locks(tuple(wanted), digest)
            self._remember(digest, known.values())
            drafts: dict[tuple[int, int], Ballot] = {}
            # Who has opened a vote of this look has read others': it comes too late.
            missing = {
                index: chunks
                for index, chunks in wanted.items()
                if chunks and (index, wave) not in known and (index, look) not in locks
            }
            found = self._findings(
                digest, case, spans, {c for each in missing.values() for c in each}
            )
            for index, chunks in missing.items():
                vote = self.keys[index].vote(subject, wave, [found[chunk] for chunk in chunks])
                salt = self.keys[index].salt(subject, wave)
                drafts[index, wave] = Ballot(vote.canonical(), salt)
            if drafts:
                self._journal.vote(digest, drafts)
                known = self._journal.ballots(tuple(wanted), digest)
        return {index: known[index, wave] for index in wanted if (index, wave) in known}

    def _remember(self, digest: bytes, ballots: Iterable[Ballot]) -> None:
        for ballot in ballots:
            for finding in Vote.from_canonical(ballot.vote).findings:
                self._found.setdefault((digest, finding.chunk), finding)

    def _findings(
        self, digest: bytes, case: Case, spans: Sequence[Span], chunks: Collection[int]
    ) -> dict[int, ChunkFinding]:
        """What this host finds in some chunks: it looks at each once, and at all new ones
        together."""
        found = {c: self._found[digest, c] for c in chunks if (digest, c) in self._found}
        new = [spans[c] for c in sorted(set(chunks) - found.keys())]
        for finding in self._check(case, new) if new else []:
            while len(self._found) >= KEPT_FINDINGS:
                del self._found[next(iter(self._found))]
            found[finding.chunk] = self._found[digest, finding.chunk] = finding
        return found

    def _check(self, case: Case, spans: Sequence[Span]) -> list[ChunkFinding]:
        """Verify and judge some chunks. Trouble on this side abstains: it must not accuse the
        node."""
        try:
            reference = self._get_reference()
            claim = Claim(case.docket.spec, case.input, case.output, case.materials)
            verdicts = verify_spans(claim, case.proof, reference, self._workdir, spans)
        except Exception as error:
            return [self._unable(case, span, error) for span in spans]
        return [
            self._judge(case, span, verdict, reference)
            for span, verdict in zip(spans, verdicts, strict=True)
        ]

    def _judge(
        self, case: Case, span: Span, verdict: Verdict, reference: Reference
    ) -> ChunkFinding:
        opinion = None
        try:
            if verdict.reexecuted is not None and verdict.outcome is Outcome.VALID:
                claimed = verdict.claimed if verdict.claimed is not None else case.output
                senses = Senses(reference.embed, likelihood_of(verdict, claimed), reference.chat)
                opinion = self._panel.compare(claimed, verdict.reexecuted, senses)
        except Exception as error:
            return self._unable(case, span, error)
        return self._decided(case, span, verdict, opinion)

    def _unable(self, case: Case, span: Span, error: Exception) -> ChunkFinding:
        _log.error("review of task %s failed here", case.docket.spec.task_id.hex(), exc_info=error)
        said = f"could not check: {type(error).__name__}: {error}"
        return self._decided(case, span, Verdict(Outcome.CANNOT_TELL, 0, said), None)

    def _decided(
        self, case: Case, span: Span, verdict: Verdict, opinion: Opinion | None
    ) -> ChunkFinding:
        finding = decide(verdict, opinion, case.docket.spec.review.min_confidence_ppm)
        return ChunkFinding(
            chunk=span.index,
            decision=finding.decision,
            confidence_ppm=finding.confidence_ppm,
            reason=_short(finding.reason),
            panel=opinion.encoded if opinion is not None else (),
        )

    def inspect(self, request: ReviewRequest) -> VoteChoice:
        """What this host finds in a whole output: a reject where one chunk is wrong, an accept
        where all are right."""
        case = Case.of(request)
        with self._reviewing:
            found = [each.decision for each in self._check(case, spans_of(case.proof))]
        if VoteChoice.REJECT in found:
            return VoteChoice.REJECT
        return VoteChoice.ABSTAIN if VoteChoice.ABSTAIN in found else VoteChoice.ACCEPT

    def reveal(self, subject_bytes: bytes, look_bytes: bytes) -> RevealReply:
        """Once the set of commits is closed, lock it and open these seats' votes against it.

        After this no vote can be added: whoever has read the openings comes too late to copy.
        """
        subject, look = self._subject(subject_bytes), unpack(Look, look_bytes)
        full, state = look.full, checked_commits(subject, self.committee, look)
        committed = state.committed(full=full)
        needed = 1 if full else self.committee.faults + 1
        voters = {seat for seat, _ in committed}
        if len(voters) < needed:
            return RevealReply((), f"only {len(voters)} seats have committed")
        digest, number = subject.digest, int(full)
        ballots = self._journal.ballots(tuple(self._honest), digest)
        mine = {slot: ballot for slot, ballot in ballots.items() if slot in committed}
        bare = look.model_copy(update={"reveals": (), "closed": None})
        voting = sorted({seat for seat, _ in mine})
        self._journal.lock(voting, digest, number, look.digest, bare.canonical())
        locks = self._journal.locks(tuple(self._honest), digest)
        reveals = [
            self.keys[slot[0]].reveal(Vote.from_canonical(ballot.vote), ballot.salt)
            for slot, ballot in sorted(mine.items())
            if locks.get((slot[0], number)) == look.digest
        ]
        for traitor in self._traitors.values():
            reveals += traitor.reveals(subject, committed, reveals)
        refused = None if reveals else "these seats took no part in this round of commits"
        return RevealReply(tuple(item.canonical() for item in reveals), refused)

    # The outcome

    def sign(self, subject_bytes: bytes, docket_bytes: bytes, record_bytes: bytes) -> SignReply:
        """Count the whole record, and sign its outcome, once per review.

        Args:
            docket_bytes: may be empty where these seats have been shown it.

        Seats that were not asked sign as well, and seats that came late: late is not lying. One
        does not that opened its vote against another set of commits, or that rejected what the
        record, which leaves its vote out, accepts without having asked all seats.

        Raises:
            CommitteeError: as for :meth:`open`; or the record leaves the outcome open.
        """
        subject, record = self._subject(subject_bytes), unpack(Record, record_bytes)
        bound = self._journal.bound(tuple(self._honest), execution_of(subject), subject.digest)
        if not bound:
            docket = unpack(Docket, docket_bytes, MAX_DOCKET_BYTES)
            bound = self._bind(subject, docket)
        looks = [self._whole(look) for look in record.looks]
        record = Record(beacon=record.beacon, looks=tuple(look for look in looks if look))
        if None in looks:
            return SignReply((), "a set of commits is not here", lost=True)
        state = replayed(subject, self.committee, record)
        if state.phase is not Phase.SIGN:
            raise CommitteeError("the record leaves the outcome open: all seats must be asked")
        digest, tally, message = subject.digest, state.tally(), state.message()
        ballots = self._journal.ballots(bound, digest)
        locks = self._journal.locks(bound, digest)
        closed = {number: look.digest for number, look in enumerate(record.looks)}
        able = [index for index in bound if self._agrees(index, state, ballots, locks, closed)]
        signers = self._journal.attest(able, digest, message, record.canonical())
        partials = [(index, self.keys[index].bls.sign(message)) for index in signers]
        for index, traitor in self._traitors.items():
            partials += [
                (index, item)
                for item in traitor.partials(
                    subject, tally.decision, tally.confidence_ppm, state.basis
                )
            ]
        refused = None if partials else "these seats' votes are not in this tally"
        return SignReply(tuple(partials), refused)

    def _whole(self, look: Look) -> Look | None:
        """A look with its commits; nothing where they are named and not known here."""
        if look.closed is None:
            return look
        data = self._journal.message(look.closed)
        if data is None:
            return None
        return Look.from_canonical(data).model_copy(update={"reveals": look.reveals})

    def _agrees(
        self,
        index: int,
        state: ReviewState,
        ballots: Mapping[tuple[int, int], Ballot],
        locks: Mapping[tuple[int, int], bytes],
        closed: Mapping[int, bytes],
    ) -> bool:
        """Whether a seat may sign this state's outcome, after all it has said."""
        if any(
            name != closed.get(number) for (seat, number), name in locks.items() if seat == index
        ):
            return False
        disputed = state.disputed
        for slot, ballot in ballots.items():
            if slot[0] != index or slot in state.reveals:
                continue
            vote = Vote.from_canonical(ballot.vote)
            if state.tally().decision is Decision.ACCEPTED and any(
                each.decision is VoteChoice.REJECT and each.chunk not in disputed
                for each in vote.findings
            ):
                return False
        return True


_OTHER_PROOF: Final = "seats were asked about another proof of this attempt before"


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:199] + "…"
