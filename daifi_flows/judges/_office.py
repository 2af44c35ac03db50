"""A host's seats without Ray: one shared re-execution, one journal, each seat's own signature."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from daifi_flows.cnft import (
    ChunkFinding,
    Committee,
    ReviewRequest,
    Subject,
    Vote,
    VoteCommit,
    VoteReveal,
)
from daifi_flows.encoding import canonical, decode_canonical, keccak256
from daifi_flows.errors import CommitteeError, EncodingError
from daifi_flows.judges._blocks import BlockOffice, BlockValidator
from daifi_flows.judges._byzantine import traitors
from daifi_flows.judges._committee import ReviewState, check_committee
from daifi_flows.judges._journal import Entry, Journal
from daifi_flows.judges._keygen import KeyOffice
from daifi_flows.judges._messages import (
    CertifyReply,
    CommitReply,
    ProposeReply,
    RevealReply,
    SignReply,
)
from daifi_flows.judges._seat import SeatKeys
from daifi_flows.judges.panel import Finding, Panel, decide
from daifi_flows.proofs import Claim, Outcome, Reference, Verdict, verify_proof

__all__ = ["MAX_MESSAGE_BYTES", "SeatOffice", "decode_list", "encode_list"]

MAX_MESSAGE_BYTES = 4096
"""Largest commit or reveal of a seat: a reason of 500 characters is at most 2,000 bytes."""

_log = logging.getLogger(__name__)


def encode_list(items: Sequence[bytes]) -> bytes:
    """Canonical list of byte strings."""
    return canonical(list(items))


def decode_list(data: bytes) -> tuple[bytes, ...]:
    """Reverse of :func:`encode_list`.

    Raises:
        EncodingError: something else.
    """
    value = decode_canonical(data)
    if not isinstance(value, list) or not all(isinstance(item, bytes) for item in value):
        raise EncodingError("not a list of byte strings")
    return tuple(value)


class SeatOffice:
    """Several seats of one committee on one machine. Thread-safe; every method blocks.

    A seat only ever answers for the committee given here: a request that brings its own could
    fill it with strangers and have honest seats sign what those strangers voted.

    Args:
        committee: the committee these seats belong to.
        seats: their indices.
        keys_dir: folder with their key files (see :meth:`SeatKeys.load`).
        reference_factory: makes the verifier's copy of the models; called once, when first needed.
        validator_factory: makes the block validator; called once, when first needed.
        workdir: journal (``seats.sqlite``) and verifier caches.
        byzantine: dishonest seats by index, for tests and benchmarks.

    Raises:
        CommitteeError: the committee is unsound, or a key is not the committee's for that seat.
        KeyMaterialError: a key file cannot be used.
    """

    def __init__(
        self,
        committee: Committee,
        seats: Sequence[int],
        keys_dir: Path,
        *,
        reference_factory: Callable[[], Reference],
        validator_factory: Callable[[], BlockValidator] | None,
        workdir: Path,
        panel: Panel | None = None,
        byzantine: Mapping[int, str] | None = None,
    ) -> None:
        check_committee(committee)
        self.committee = committee
        self.keys = {index: SeatKeys.load(keys_dir, index) for index in sorted(seats)}
        for index, keys in self.keys.items():
            if index >= len(committee.seats) or committee.seats[index].public != keys.bls.public:
                raise CommitteeError(
                    f"the key of seat {index} in {keys_dir} is not the committee's: restore it, or "
                    "make the committee again"
                )
        self._traitors = traitors(self.keys, byzantine or {})
        self._honest = {i: keys for i, keys in self.keys.items() if i not in self._traitors}
        self._reference_factory = reference_factory
        self._reference: Reference | None = None
        self._reviewing = threading.Lock()
        self._workdir = workdir
        self._panel = panel or Panel()
        self._journal = Journal(workdir / "seats.sqlite")
        self._blocks = BlockOffice(
            committee, self.keys, self._traitors, self._journal, validator_factory
        )
        self._keygen = KeyOffice(committee, self.keys, keys_dir, self._blocks.succession)

    @property
    def seats(self) -> tuple[int, ...]:
        """Indices of the seats here."""
        return tuple(self.keys)

    # Rounds of a review

    def commit(self, request: ReviewRequest) -> CommitReply:
        """Round one: re-execute and judge once (or remember), then each seat commits.

        Raises:
            CommitteeError: the request is for another committee, or its input is not the one the
                spec names (that is the requester's fault, not the node's).
        """
        if request.committee.digest != self.committee.digest:
            raise CommitteeError("the review is for another committee: ask its seats")
        if request.input.cid != request.spec.input_cid:
            raise CommitteeError("the review's input is not the one its spec names: send that one")
        subject = Subject.of(request)
        key = keccak256(subject.canonical())
        entries = self._journal.entries(tuple(self._honest), key)
        if len(entries) < len(self._honest):
            with self._reviewing:  # the same request, sent twice, waits here and then remembers
                entries = self._vote(request, subject, key)
        commits = [
            self.keys[index].commit(Vote.from_canonical(entry.vote), entry.salt)
            for index, entry in sorted(entries.items())
        ]
        for traitor in self._traitors.values():
            commits += traitor.commits(subject, commits)
        locked = next((entry.locked for entry in entries.values() if entry.locked), None)
        signed = next((entry.signed for entry in entries.values() if entry.signed), None)
        return CommitReply(
            seats=self.seats,
            commits=tuple(commit.canonical() for commit in commits),
            locked=decode_list(locked) if locked else None,
            signed=decode_list(signed) if signed else None,
        )

    def _vote(self, request: ReviewRequest, subject: Subject, key: bytes) -> dict[int, Entry]:
        """Journal a vote for every honest seat that has none in this review."""
        entries = self._journal.entries(tuple(self._honest), key)
        missing = [index for index in self._honest if index not in entries]
        drafts: dict[int, Entry] = {}
        if missing:
            found = self._find(request)
            finding = ChunkFinding(
                chunk=0,
                decision=found.decision,
                confidence_ppm=found.confidence_ppm,
                reason=found.reason[:200],
            )
            for index in missing:
                vote = self.keys[index].vote(subject, 0, [finding]).canonical()
                drafts[index] = Entry(vote, self.keys[index].salt(subject, 0))
        self._journal.record_votes(key, subject.task_id, subject.proof_cid, drafts)
        return self._journal.entries(tuple(self._honest), key)

    def reveal(self, subject_bytes: bytes, commits: Sequence[bytes]) -> RevealReply:
        """Round two: once a quorum has committed, lock that set and open these seats' votes.

        After this no vote can be added: whoever has read the openings comes too late to copy.
        """
        subject, state = self._closed(subject_bytes, commits)
        if len(state.committed) < self.committee.quorum:
            return RevealReply((), f"only {len(state.committed)} seats have committed")
        key, locked = keccak256(subject.canonical()), encode_list(commits_of(state))
        self._journal.record_lock(
            key, [index for index in self._honest if index in state.committed], locked
        )
        entries = self._journal.entries(tuple(self._honest), key)
        reveals = [
            self.keys[index].reveal(Vote.from_canonical(entry.vote), entry.salt)
            for index, entry in sorted(entries.items())
            if entry.locked == locked
        ]
        for traitor in self._traitors.values():
            reveals += traitor.reveals(subject, reveals)
        refused = None if reveals else "these seats took no part in this round of commits"
        return RevealReply(tuple(item.canonical() for item in reveals), refused)

    def sign(
        self, subject_bytes: bytes, commits: Sequence[bytes], reveals: Sequence[bytes]
    ) -> SignReply:
        """Round three: tally, and sign the outcome once per review.

        A seat whose own vote was left out of the tally does not sign it.
        """
        subject, state = self._closed(subject_bytes, commits)
        for item in reveals:
            state = state.add_reveal(_parse_reveal(item))
        state = state.close_reveals()
        key, locked = keccak256(subject.canonical()), encode_list(commits_of(state))
        signed = encode_list(reveals_of(state))
        able = [
            index
            for index, entry in self._journal.entries(tuple(self._honest), key).items()
            if entry.locked == locked and index in state.reveals
        ]
        self._journal.record_signed(key, able, signed)
        tally, message = state.tally(), state.message()
        partials = [
            (index, self.keys[index].bls.sign(message))
            for index, entry in sorted(self._journal.entries(able, key).items())
            if entry.signed == signed
        ]
        for index, traitor in self._traitors.items():
            partials += [
                (index, item)
                for item in traitor.partials(subject, tally.decision, tally.confidence_ppm)
            ]
        refused = None if partials else "these seats' votes are not in this tally"
        return SignReply(tuple(partials), refused)

    def _closed(
        self, subject_bytes: bytes, commits: Sequence[bytes]
    ) -> tuple[Subject, ReviewState]:
        subject = Subject.from_canonical(subject_bytes, max_bytes=MAX_MESSAGE_BYTES)
        state = ReviewState(subject, self.committee)
        for item in commits:
            state = state.add_commit(VoteCommit.from_canonical(item, max_bytes=MAX_MESSAGE_BYTES))
        return subject, state.close_commits()

    def _find(self, request: ReviewRequest) -> Finding:
        """Verify and judge. Trouble on this side abstains: it must not accuse the node."""
        result = request.result
        try:
            reference = self._get_reference()
            claim = Claim(request.spec, request.input, result.output, request.materials)
            verdict = verify_proof(claim, result.proof, reference, self._workdir)
            again = verdict.reexecuted
            opinion = (
                self._panel.compare(result.output, again, reference.embed)
                if again is not None and verdict.outcome is Outcome.VALID
                else None
            )
        except Exception as error:
            _log.exception("review of task %s failed here", request.spec.task_id.hex())
            verdict = Verdict(
                Outcome.CANNOT_TELL, 0, f"could not check: {type(error).__name__}: {error}"
            )
            opinion = None
        return decide(verdict, opinion, request.spec.review.min_confidence_ppm)

    def _get_reference(self) -> Reference:
        if self._reference is None:
            self._reference = self._reference_factory()
        return self._reference

    # The group's key

    def keygen(self, request: bytes) -> bytes:
        """See :meth:`KeyOffice.answer`."""
        return self._keygen.answer(request)

    # Blocks of the ledger

    def certify(self, header_bytes: bytes, block: bytes) -> CertifyReply:
        """See :meth:`BlockOffice.certify`."""
        return self._blocks.certify(header_bytes, block)

    def propose(self, seat: int, offer: bytes) -> ProposeReply:
        """See :meth:`BlockOffice.propose`."""
        return self._blocks.propose(seat, offer)

    def resume(self, header_bytes: bytes, term: int) -> CertifyReply:
        """See :meth:`BlockOffice.resume`."""
        return self._blocks.resume(header_bytes, term)

    def skip(self, parent_bytes: bytes, round: int, term: int) -> CertifyReply:
        """See :meth:`BlockOffice.skip`."""
        return self._blocks.skip(parent_bytes, round, term)

    def provide_blocks(self, blocks: Sequence[bytes]) -> int:
        """See :meth:`BlockOffice.provide_blocks`."""
        return self._blocks.provide_blocks(blocks)

    # Life

    def warm_reviews(self) -> None:
        """Load the models, so that the first review does not wait for them."""
        with self._reviewing:
            rows = self._get_reference().embed(["warm-up"])
        if not math.isfinite(float(rows.sum())):
            raise CommitteeError("the embedding model returned numbers that are not finite")

    def warm_blocks(self) -> None:
        """Make the block validator, where there is one."""
        self._blocks.warm()

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()


def commits_of(state: ReviewState) -> list[bytes]:
    """The locked set in canonical form."""
    return [commit.canonical() for commit in state.commit_set]


def reveals_of(state: ReviewState) -> list[bytes]:
    """The tallied set in canonical form."""
    return [reveal.canonical() for reveal in state.reveal_set]


def _parse_reveal(data: bytes) -> VoteReveal:
    return VoteReveal.from_canonical(data, max_bytes=MAX_MESSAGE_BYTES)
