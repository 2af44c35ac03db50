"""A host's seats without Ray: what they do in reviews and about blocks, and one journal."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from daifi_flows.cnft import Committee
from daifi_flows.errors import CommitteeError
from daifi_flows.judges._beacon import check_committee
from daifi_flows.judges._blocks import BlockOffice, BlockValidator
from daifi_flows.judges._byzantine import traitors
from daifi_flows.judges._journal import Journal
from daifi_flows.judges._keygen import KeyOffice
from daifi_flows.judges._messages import (
    Asked,
    Case,
    CertifyReply,
    CommitReply,
    OpenReply,
    ProposeReply,
    RevealReply,
    SignReply,
)
from daifi_flows.judges._review_journal import ReviewJournal
from daifi_flows.judges._review_office import ReviewOffice
from daifi_flows.judges._seat import SeatKeys
from daifi_flows.judges._statements import Question, StatementDesk, StatementReply
from daifi_flows.judges._statements_journal import StatementJournal
from daifi_flows.judges.panel import Panel
from daifi_flows.proofs import Reference

__all__ = ["SeatOffice", "now_ms"]


def now_ms() -> int:
    """The wall clock, Unix milliseconds."""
    return time.time_ns() // 1_000_000


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
        clock_ms: Unix milliseconds, to know by when a task's deadline has passed.

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
        clock_ms: Callable[[], int] = now_ms,
    ) -> None:
        check_committee(committee)
        self.committee = committee
        shares = {seat.index: seat.share for seat in committee.seats}
        self.keys = {i: SeatKeys.load(keys_dir, i, shares.get(i)) for i in sorted(seats)}
        for index, keys in self.keys.items():
            if index >= len(committee.seats) or committee.seats[index].public != keys.bls.public:
                raise CommitteeError(
                    f"the key of seat {index} in {keys_dir} is not the committee's: restore it, or "
                    "make the committee again"
                )
        self._traitors = traitors(self.keys, byzantine or {})
        self._reference_factory = reference_factory
        self._reference: Reference | None = None
        self._loading = threading.Lock()
        self._journal = Journal(workdir / "seats.sqlite")
        self._review_journal = ReviewJournal(workdir / "seats.sqlite")
        self._blocks = BlockOffice(
            committee, self.keys, self._traitors, self._journal, validator_factory
        )
        self._reviews = ReviewOffice(
            committee,
            self.keys,
            self._traitors,
            journal=self._review_journal,
            get_reference=self._get_reference,
            panel=panel or Panel(),
            workdir=workdir,
            clock_ms=clock_ms,
            earlier=None if validator_factory is None else self._blocks.certifier_of,
        )
        self._statement_journal = StatementJournal(workdir / "seats.sqlite")
        self._statements = StatementDesk(
            committee,
            {index: own for index, own in self.keys.items() if index not in self._traitors},
            self._statement_journal,
            self._reviews.inspect,
            {
                index: (traitor.keys, finding)
                for index, traitor in self._traitors.items()
                if (finding := traitor.dispute_finding) is not None
            },
        )
        self._keygen = KeyOffice(committee, self.keys, keys_dir, self._blocks.succession)

    @property
    def seats(self) -> tuple[int, ...]:
        """Indices of the seats here."""
        return tuple(self.keys)

    # Reviews

    def open(self, subject: bytes, docket: bytes) -> OpenReply:
        """See :meth:`ReviewOffice.open`."""
        return self._reviews.open(subject, docket)

    def commit(
        self, subject: bytes, beacon: bytes, wave: int, asked: Asked, case: Case
    ) -> CommitReply:
        """See :meth:`ReviewOffice.commit`."""
        return self._reviews.commit(subject, beacon, wave, asked, case)

    def reveal(self, subject: bytes, look: bytes) -> RevealReply:
        """See :meth:`ReviewOffice.reveal`."""
        return self._reviews.reveal(subject, look)

    def sign(self, subject: bytes, docket: bytes, record: bytes) -> SignReply:
        """See :meth:`ReviewOffice.sign`."""
        return self._reviews.sign(subject, docket, record)

    def _get_reference(self) -> Reference:
        with self._loading:
            if self._reference is None:
                self._reference = self._reference_factory()
            return self._reference

    # The group's key

    def keygen(self, request: bytes) -> bytes:
        """See :meth:`KeyOffice.answer`."""
        return self._keygen.answer(request)

    # Disputes and batches

    def statement(self, question: Question) -> StatementReply:
        """See :meth:`StatementDesk.answer`."""
        return self._statements.answer(question)

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
        rows = self._get_reference().embed(["warm-up"])
        if not math.isfinite(float(rows.sum())):
            raise CommitteeError("the embedding model returned numbers that are not finite")

    def warm_blocks(self) -> None:
        """Make the block validator, where there is one."""
        self._blocks.warm()

    def close(self) -> None:
        """Close the journal."""
        self._statement_journal.close()
        self._review_journal.close()
        self._journal.close()
