"""The state: records by key, as layers of changes over a base.

A layer sees through to what is below it. A refused transaction drops its layer; a certified block
merges its layer down.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Final, TypeVar

from daifi_flows.cnft import BlockHeader, Committee
from daifi_flows.errors import EncodingError, LedgerCorrupted
from daifi_flows.ledger._bids import AuctionRecord
from daifi_flows.ledger._committees import (
    CandidateList,
    CandidateRecord,
    CommitteeRecord,
    OfficeRecord,
    RollRecord,
    committee_key,
)
from daifi_flows.ledger._disputes import DisputeRecord, OffenceRecord
from daifi_flows.ledger._epochs import EpochRecord, NodeEpochRecord, ScheduleRecord
from daifi_flows.ledger._governance import (
    AgendaRecord,
    ModelRecord,
    ProposalRecord,
    VoterRecord,
)
from daifi_flows.ledger._lease import OfferRecord, PoolRecord, ProviderRecord
from daifi_flows.ledger._market import ListingRecord
from daifi_flows.ledger._nodes import BlsKeyRecord
from daifi_flows.ledger._params import Params, ParamsRecord
from daifi_flows.ledger._records import (
    BUCKETS,
    AccountRecord,
    Record,
    SupplyReport,
    TaskRecord,
    TokenRecord,
)
from daifi_flows.ledger._rollups import ClaimedWord, RollupCount, RollupRecord
from daifi_flows.ledger._sealed import SealedCount, SealedRecord
from daifi_flows.ledger._tokens import OperatorRecord, ReproductionRecord

__all__ = [
    "RECORDS",
    "Base",
    "Layer",
    "MemoryBase",
    "account_key",
    "decode_entry",
    "supply_of",
    "task_key",
    "token_key",
]

RECORDS: Final[tuple[type[Record], ...]] = (
    AccountRecord,
    TaskRecord,
    TokenRecord,
    SupplyReport,
    ParamsRecord,
    ScheduleRecord,
    EpochRecord,
    NodeEpochRecord,
    BlsKeyRecord,
    AuctionRecord,
    DisputeRecord,
    OffenceRecord,
    ListingRecord,
    OperatorRecord,
    ReproductionRecord,
    PoolRecord,
    ProviderRecord,
    OfferRecord,
    RollupRecord,
    ClaimedWord,
    RollupCount,
    ProposalRecord,
    AgendaRecord,
    VoterRecord,
    ModelRecord,
    SealedRecord,
    SealedCount,
    OfficeRecord,
    CommitteeRecord,
    CandidateRecord,
    CandidateList,
    RollRecord,
)
"""Every kind of record there is."""
_KINDS: Final[dict[int, type[Record]]] = {kind.prefix[0]: kind for kind in RECORDS}
assert len(_KINDS) == len(RECORDS), "two kinds of records share a prefix"
_T = TypeVar("_T", bound=Record)


def account_key(address: str) -> bytes:
    """State key of an account."""
    return AccountRecord.prefix + bytes.fromhex(address[2:])


def task_key(task_id: bytes) -> bytes:
    """State key of a task."""
    return TaskRecord.prefix + task_id


def token_key(token_id: bytes) -> bytes:
    """State key of a token."""
    return TokenRecord.prefix + token_id


def decode_entry(key: bytes, value: bytes) -> Record:
    """The record stored under a key.

    Raises:
        LedgerCorrupted: the key's kind is unknown or the value is not its record.
    """
    kind = _KINDS.get(key[0]) if key else None
    if kind is None:
        raise LedgerCorrupted("the ledger's state holds an entry of unknown kind: restore a backup")
    try:
        record = kind.from_canonical(value)
    except EncodingError as error:
        raise LedgerCorrupted(
            f"the ledger's state holds a damaged entry ({error}): restore a backup"
        ) from error
    if record.key() != key:
        raise LedgerCorrupted(
            "the ledger's state holds an entry under another's key: restore a backup"
        )
    return record


class Base(ABC):
    """A readable state that takes changes; what layers sit on."""

    __slots__ = ()

    @abstractmethod
    def get(self, key: bytes) -> Record | None:
        """The record under ``key``."""

    @abstractmethod
    def items(self) -> Iterator[tuple[bytes, Record]]:
        """Every entry, in any order: for audits and tests."""

    @abstractmethod
    def apply(self, changes: Mapping[bytes, Record | None]) -> None:
        """Set these entries; absent ones are removed."""

    def find(self, kind: type[_T], key: bytes) -> _T | None:
        """The record of this kind under ``key``, if there is one."""
        found = self.get(key)
        return found if isinstance(found, kind) else None

    def account(self, address: str) -> AccountRecord:
        """An account; zeros for an address never seen."""
        return self.find(AccountRecord, account_key(address)) or AccountRecord(address=address)

    def task(self, task_id: bytes) -> TaskRecord | None:
        """A task, if it was opened and has not left the state."""
        return self.find(TaskRecord, task_key(task_id))

    def token(self, token_id: bytes) -> TokenRecord | None:
        """A token, if it was ever minted."""
        return self.find(TokenRecord, token_key(token_id))

    def supply(self) -> SupplyReport:
        """Where all money is.

        Raises:
            LedgerCorrupted: the state does not say.
        """
        found = self.find(SupplyReport, SupplyReport.prefix)
        if found is None:
            raise LedgerCorrupted("the ledger's state has no supply record: restore a backup")
        return found

    def params(self) -> Params:
        """The parameters in force.

        Raises:
            LedgerCorrupted: the state does not say.
        """
        found = self.find(ParamsRecord, ParamsRecord.prefix)
        if found is None:
            raise LedgerCorrupted("the ledger's state has no parameters: restore a backup")
        return found.params

    def seated_in(self, epoch: int) -> CommitteeRecord | None:
        """The committee of an epoch up to the present one."""
        return self.find(CommitteeRecord, committee_key(epoch)) if 0 <= epoch < 2**63 else None

    def in_office(self) -> CommitteeRecord:
        """The committee that certifies the next block.

        Raises:
            LedgerCorrupted: the state does not say.
        """
        office = self.find(OfficeRecord, OfficeRecord.prefix)
        found = self.seated_in(office.epoch) if office is not None else None
        if found is None:
            raise LedgerCorrupted("the ledger's state has no committee: restore a backup")
        return found

    def committee(self) -> Committee:
        """The seats that certify the next block.

        Raises:
            LedgerCorrupted: the state does not say.
        """
        return self.in_office().committee

    def certifying(self, header: BlockHeader) -> Committee | None:
        """The committee that a block up to the last one names, if it ever was in office."""
        found = self.seated_in(header.epoch)
        return found.committee if found is not None and found.digest == header.committee else None

    def encoded(self) -> dict[bytes, bytes]:
        """Every entry as it is hashed and stored."""
        return {key: record.canonical() for key, record in self.items()}


class MemoryBase(Base):
    """A whole state in memory."""

    __slots__ = ("entries",)

    def __init__(self, entries: dict[bytes, Record] | None = None) -> None:
        self.entries: dict[bytes, Record] = entries if entries is not None else {}

    def get(self, key: bytes) -> Record | None:
        return self.entries.get(key)

    def items(self) -> Iterator[tuple[bytes, Record]]:
        return iter(self.entries.items())

    def apply(self, changes: Mapping[bytes, Record | None]) -> None:
        for key, record in changes.items():
            if record is None:
                self.entries.pop(key, None)
            else:
                self.entries[key] = record


class Layer(Base):
    """Changes over a parent: another layer, or a base. Absent values are tombstones."""

    __slots__ = ("changes", "parent")

    def __init__(self, parent: Base) -> None:
        self.parent = parent
        self.changes: dict[bytes, Record | None] = {}

    def get(self, key: bytes) -> Record | None:
        below: Base = self
        while type(below) is Layer:
            if key in below.changes:
                return below.changes[key]
            below = below.parent
        return below.get(key)

    def items(self) -> Iterator[tuple[bytes, Record]]:
        merged = dict(self.parent.items())
        MemoryBase(merged).apply(self.changes)
        return iter(merged.items())

    def apply(self, changes: Mapping[bytes, Record | None]) -> None:
        self.changes.update(changes)

    def put(self, record: Record) -> None:
        """Set a record under its own key."""
        self.changes[record.key()] = record

    def remove(self, key: bytes) -> None:
        """Take a record out of the state."""
        self.changes[key] = None

    def encoded_changes(self) -> dict[bytes, bytes | None]:
        """This layer's own changes, as they are hashed and stored; absent: removed."""
        return {
            key: None if record is None else record.canonical()
            for key, record in self.changes.items()
        }

    def merge_down(self) -> None:
        """Move this layer's changes into its parent."""
        self.parent.apply(self.changes)
        self.changes = {}


def supply_of(state: Base) -> SupplyReport:
    """Count all money from the records themselves (the stored report is kept incrementally)."""
    held: dict[str, int] = dict.fromkeys(BUCKETS, 0)
    for _, record in state.items():
        for bucket, amount_wei in record.holdings.items():
            held[bucket] += amount_wei
    stored = state.supply()
    return stored.model_copy(update={f"{bucket}_wei": held[bucket] for bucket in BUCKETS})
