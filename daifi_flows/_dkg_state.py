"""The public side of a key generation, as a pure reducer (see :mod:`daifi_flows.dkg`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Final

from blspy import G1Element, PrivateKey
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey as BoxPrivateKey
from nacl.public import SealedBox

from daifi_flows._curve import ORDER, lagrange, multiply, parse_point
from daifi_flows._dkg_messages import (
    BOX_BYTES,
    Certificate,
    Complaint,
    Confirmation,
    DealtShares,
    Hello,
    Outcome,
    Session,
    Signed,
)
from daifi_flows.encoding import tagged_hash
from daifi_flows.errors import KeyMaterialError

__all__ = ["KeygenState", "box_public", "enrol", "roster_digest"]


def roster_digest(roster: Iterable[Hello]) -> bytes:
    """Name of a roster, 32 bytes."""
    return tagged_hash("daifi/dkg-roster/1", [hello.digest for hello in roster])


def enrol(session: Session, hellos: Iterable[Hello]) -> tuple[Hello, ...]:
    """The roster of these hellos, by holder. Who said two different ones is left out.

    Raises:
        KeyMaterialError: fewer than ``session.quorum`` holders are there.
    """
    said = dict[int, dict[bytes, Hello]]()
    for hello in hellos:
        if session.greeted(hello):
            said.setdefault(hello.holder, {})[hello.digest] = hello
    roster = tuple(next(iter(said[i].values())) for i in sorted(said) if len(said[i]) == 1)
    if len(roster) < session.quorum:
        raise KeyMaterialError(
            f"{len(roster)} holders are there for the key generation, {session.quorum} are needed"
        )
    return roster


@dataclass(frozen=True)
class _Fixed:
    """What follows from session and roster, which every later state has from the first one: to
    hash 63 hellos takes 9 ms, and there may be thousands of messages."""

    name: bytes
    roster_name: bytes
    keys: dict[int, tuple[bytes, ...]]


@dataclass(frozen=True)
class KeygenState:
    """Everything known about one session with one roster. Every method returns a new state.

    Attributes:
        dealings: per dealer, its distinct signed dealings (two are kept: proof enough).
        complaints: by holder and dealer, those that show the right key's secret.
        confirmations: per holder, its distinct signed confirmations (two are kept).
        dropped: kinds of messages that did not count, with their sender (-1: a stranger).

    Raises:
        KeyMaterialError: the session makes no sense, or this is not a roster of it.
    """

    session: Session
    roster: tuple[Hello, ...]
    dealings: Mapping[int, tuple[DealtShares, ...]] = field(default_factory=lambda: {})
    complaints: Mapping[tuple[int, int], Complaint] = field(default_factory=lambda: {})
    confirmations: Mapping[int, tuple[Confirmation, ...]] = field(default_factory=lambda: {})
    dropped: frozenset[tuple[str, int]] = frozenset()
    _fixed: _Fixed | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self._fixed is not None:
            return  # of a state that was checked
        self.session.check()
        if enrol(self.session, self.roster) != self.roster:
            raise KeyMaterialError("a roster names each holder that is there once, in order")
        keys = {hello.holder: hello.keys for hello in self.roster}
        fixed = _Fixed(self.session.digest, roster_digest(self.roster), keys)
        object.__setattr__(self, "_fixed", fixed)

    @property
    def roster_name(self) -> bytes:
        """Digest of the roster."""
        return self._given.roster_name

    @property
    def _name(self) -> bytes:
        return self._given.name

    @property
    def _keys(self) -> dict[int, tuple[bytes, ...]]:
        return self._given.keys

    @property
    def _given(self) -> _Fixed:
        assert self._fixed is not None, "set when a state is made"
        return self._fixed

    # Messages

    def add(self, message: Signed) -> KeygenState:
        """Take any message of the rounds after the hellos."""
        if isinstance(message, DealtShares):
            return self._add_dealing(message)
        if isinstance(message, Complaint):
            return self._add_complaint(message)
        if isinstance(message, Confirmation):
            return self._add_confirmation(message)
        return self._drop("unknown-kind", -1)

    def _add_dealing(self, dealing: DealtShares) -> KeygenState:
        dealer, known = dealing.dealer, self.dealings.get(dealing.dealer, ())
        if dealing in known:
            return self
        if dealer >= len(self.session.dealers):
            return self._drop("unknown-dealer", -1)
        if (dealing.session, dealing.roster) != (self._name, self.roster_name):
            return self._drop("other-session", dealer)
        if not dealing.signed_by(self.session.dealers[dealer]):
            return self._drop("bad-signature", dealer)
        return replace(self, dealings={**self.dealings, dealer: _two((*known, dealing))})

    def _add_complaint(self, complaint: Complaint) -> KeygenState:
        holder, pair = complaint.holder, (complaint.holder, complaint.dealer)
        if pair in self.complaints:
            return self
        keys = self._keys.get(holder)
        if keys is None or complaint.dealer >= len(self.session.dealers):
            return self._drop("unknown-holder", -1)
        if (complaint.session, complaint.roster) != (self._name, self.roster_name):
            return self._drop("other-session", holder)
        # First what is cheap, and what only the holder can bring: a signature takes milliseconds.
        if box_public(complaint.opening) != keys[complaint.dealer]:
            return self._drop("wrong-opening", holder)
        if not complaint.signed_by(self.session.holders[holder]):
            return self._drop("bad-signature", holder)
        return replace(self, complaints={**self.complaints, pair: complaint})

    def _add_confirmation(self, confirmation: Confirmation) -> KeygenState:
        holder, known = confirmation.holder, self.confirmations.get(confirmation.holder, ())
        if confirmation in known:
            return self
        if holder >= len(self.session.holders):
            return self._drop("unknown-holder", -1)
        if confirmation.session != self._name:
            return self._drop("other-session", holder)
        if not confirmation.signed_by(self.session.holders[holder]):
            return self._drop("bad-signature", holder)
        kept = _two((*known, confirmation))
        return replace(self, confirmations={**self.confirmations, holder: kept})

    def _drop(self, kind: str, party: int) -> KeygenState:
        return replace(self, dropped=self.dropped | {(kind, party)})

    # What follows from them

    @cached_property
    def faults(self) -> dict[int, str]:
        """Why a dealer is not qualified; the silent are among them."""
        found: dict[int, str] = {}
        for dealer in range(len(self.session.dealers)):
            said = self.dealings.get(dealer, ())
            if len(said) != 1:
                found[dealer] = "dealt twice" if said else "dealt nothing"
            elif (fault := self._malformed(said[0])) is not None:
                found[dealer] = fault
        for holder, dealer in sorted(self.complaints):
            if dealer not in found and self._is_right(self.complaints[holder, dealer]):
                found[dealer] = f"dealt holder {holder} a wrong share"
        return dict(sorted(found.items()))

    @cached_property
    def false_complaints(self) -> tuple[tuple[int, int], ...]:
        """Holder and dealer of each complaint about a box that holds the right value."""
        return tuple(
            pair
            for pair, complaint in sorted(self.complaints.items())
            if any(
                self._malformed(dealing) is None
                and self.open_share(dealing, complaint.holder, complaint.opening) is not None
                for dealing in self.dealings.get(complaint.dealer, ())
            )
        )

    @cached_property
    def qualified(self) -> dict[int, DealtShares]:
        """The dealings that make up the key, by dealer."""
        return {
            dealer: said[0]
            for dealer, said in sorted(self.dealings.items())
            if dealer not in self.faults
        }

    @cached_property
    def outcome(self) -> Outcome | None:
        """The result, as far as the messages go; absent with too few qualified dealers."""
        chosen = self.qualified
        if len(chosen) < self.session.dealers_needed:
            return None
        rows = [_points(dealing.commitments) for dealing in chosen.values()]
        assert all(row is not None for row in rows)
        columns = list(zip(*(row for row in rows if row is not None), strict=True))
        if self.session.previous is None:
            totals = [sum(column[1:], start=column[0]) for column in columns]
        else:
            tops, bottom = lagrange(tuple(dealer + 1 for dealer in chosen))
            inverse = pow(bottom, -1, ORDER)
            totals = [
                multiply([multiply(column, tops, G1Element())], [inverse], G1Element())
                for column in columns
            ]
        shares = [bytes(_at(totals, holder + 1)) for holder in range(len(self.session.holders))]
        group_key, nothing = bytes(totals[0]), bytes(G1Element())
        before = self.session.previous
        if nothing in (group_key, *shares) or (before and before.group_key != group_key):
            return None  # a secret of zero: about once in 2^247 sessions
        return Outcome(
            session=self._name,
            roster=self.roster_name,
            dealers=tuple(chosen),
            dealings=tuple(dealing.digest for dealing in chosen.values()),
            group_key=group_key,
            shares=tuple(shares),
        )

    @property
    def certificate(self) -> Certificate | None:
        """The outcome with its confirmations, once a quorum has confirmed this one."""
        if self.outcome is None:
            return None
        digest = self.outcome.digest
        right = [
            item
            for _, said in sorted(self.confirmations.items())
            for item in said
            if item.outcome == digest
        ]
        if len(right) < self.session.quorum:
            return None
        return Certificate(outcome=self.outcome, confirmations=tuple(right))

    def open_share(self, dealing: DealtShares, holder: int, secret: bytes) -> int | None:
        """The holder's value in a well-formed dealing, or nothing where its box holds no such."""
        try:
            plain = SealedBox(BoxPrivateKey(secret)).decrypt(dealing.boxes[holder])
        except (CryptoError, ValueError, TypeError, IndexError):
            return None
        value = int.from_bytes(plain, "big")
        if len(plain) != 32 or value >= ORDER:
            return None
        points = _points(dealing.commitments)
        right = points is not None and PrivateKey.from_bytes(plain).get_g1() == _at(
            points, holder + 1
        )
        return value if right else None

    def _malformed(self, dealing: DealtShares) -> str | None:
        """What everybody can see to be wrong with a dealing."""
        session, before = self.session, self.session.previous
        if len(dealing.commitments) != session.threshold:
            return "committed to a polynomial of another degree"
        if _points(dealing.commitments) is None:
            return "committed to what is no point of G1"
        if before is not None and dealing.commitments[0] != before.shares[dealing.dealer]:
            return "handed on another value than its share"
        sizes = [BOX_BYTES if holder in self._keys else 0 for holder in range(len(session.holders))]
        if [len(box) for box in dealing.boxes] != sizes:
            return "did not deal to everybody on the roster"
        return None

    def _is_right(self, complaint: Complaint) -> bool:
        dealing = self.dealings[complaint.dealer][0]
        return self.open_share(dealing, complaint.holder, complaint.opening) is None


_CACHED: Final = 128
"""Dealings whose points stay parsed: two sessions of the largest size."""


@lru_cache(maxsize=_CACHED)
def _points(commitments: tuple[bytes, ...]) -> tuple[Any, ...] | None:
    try:
        return tuple(parse_point(G1Element, data, 48) for data in commitments)
    except KeyMaterialError:
        return None


def _at(points: Iterable[Any], x: int) -> Any:
    """Σ xᵏ·pointₖ (Horner): x is small, so this beats any batching of the checks."""
    backwards = reversed(tuple(points))
    value = next(backwards)
    for point in backwards:
        value = multiply([value], [x], G1Element()) + point
    return value


def _two(messages: tuple[Any, ...]) -> tuple[Any, ...]:
    """The two smallest of distinct messages: a choice that does not depend on arrival."""
    distinct = {message.digest: message for message in messages}
    return tuple(distinct[name] for name in sorted(distinct)[:2])


def box_public(secret: bytes) -> bytes:
    """The X25519 public key of a 32-byte secret."""
    return bytes(BoxPrivateKey(secret).public_key)
