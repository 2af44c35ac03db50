"""The part of a seat host that makes its committee's key, and hands shares on to the next one.

The protocol is :mod:`daifi_flows.dkg`; here are a seat's secrets and what it may do with them.
Whoever asks (see :mod:`daifi_flows.judges._keygen_client`) carries the messages and learns no
secret; it can waste time, and leave honest seats without a share (see :mod:`daifi_flows.dkg`).
Every request brings all that its answer depends on, and a seat

* makes a new key only with the seats of its own committee, while that has none;
* takes over shares only of the group key that its committee was given;
* hands its share on only to the seats that were drawn, as its own copy of the ledger says in its
  last final block, and signs a handover only to a committee that a quorum of those confirmed;
* confirms one outcome a session;
* deletes its share only when the ledger says that another committee is in office.

On disk, beside the seat's keys (mode 0600): one random seed a session, from which all that the
seat says in it follows, so that a host killed at any time says the same again; the outcome it
confirmed; and its share under that outcome, which is there before the seat confirms. Which session
gives the committee its key is for whoever carries the messages to choose, and it may tell seats
different things: so a seat keeps its share of each, and its host takes the one that the committee
names when it is started with that (:meth:`SeatKeys.load`). All of it goes when the committee has
left office. A committee's seats have a folder of their own: the same node's share in the next
committee must not replace the one that it still signs with.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from daifi_flows.cnft import Bytes96, Committee, Noun, Uint
from daifi_flows.dkg import (
    MAX_PARTIES,
    Certificate,
    Complaint,
    Confirmation,
    DealtShares,
    Hello,
    Insider,
    KeygenState,
    Session,
    enrol,
)
from daifi_flows.epochs import Elected, Succession, committee_fault, handover_message
from daifi_flows.errors import CommitteeError, DaifiError, EncodingError, KeyMaterialError
from daifi_flows.judges._seat import SeatKeys
from daifi_flows.keys import BlsKey, keep_first, load_secret, save_secret, sync_folder

__all__ = ["KeyOffice", "KeygenAsk", "KeygenStep", "KeygenWord", "Partial", "seated"]

_MAX_BYTES = 4 * 1024 * 1024
"""Largest request: 63 dealings of 7 kB, and a complaint of each holder about each."""

_MAX_SESSIONS = 64
"""Sessions that a seat remembers: they must not fill a disk. Of those in which it confirmed nothing
the oldest makes way for a new one."""

_CONFIRMED = ".confirmed"

_Words = Field(max_length=2 * MAX_PARTIES)


class KeygenStep(StrEnum):
    """What is asked of the seats."""

    HELLO = "hello"
    DEAL = "deal"
    CHECK = "check"
    CONFIRM = "confirm"
    INSTALL = "install"
    HAND_OVER = "hand-over"
    RETIRE = "retire"


class KeygenAsk(Noun):
    """One request, with everything its answer depends on."""

    max_canonical_bytes: ClassVar[int] = _MAX_BYTES

    step: KeygenStep
    session: Session
    roster: Annotated[tuple[Hello, ...], _Words] = ()
    dealings: Annotated[tuple[DealtShares, ...], _Words] = ()
    complaints: Annotated[tuple[Complaint, ...], Field(max_length=MAX_PARTIES**2)] = ()
    certificate: Certificate | None = None
    committee: Committee | None = None
    """Who takes over, where a signature of the handover is asked for."""

    def state(self) -> KeygenState:
        """All messages, reduced.

        Raises:
            KeyMaterialError: session or roster make no sense.
        """
        state = KeygenState(self.session, self.roster)
        for message in (*self.dealings, *self.complaints):
            state = state.add(message)
        return state


class Partial(Noun):
    """One seat's signature."""

    seat: Uint
    signature: Bytes96


class KeygenWord(Noun):
    """What a host's seats say to a request."""

    max_canonical_bytes: ClassVar[int] = _MAX_BYTES

    hellos: Annotated[tuple[Hello, ...], _Words] = ()
    dealings: Annotated[tuple[DealtShares, ...], _Words] = ()
    complaints: Annotated[tuple[Complaint, ...], Field(max_length=MAX_PARTIES**2)] = ()
    confirmations: Annotated[tuple[Confirmation, ...], _Words] = ()
    installed: Annotated[tuple[Uint, ...], _Words] = ()
    """Seats that hold their share, or that no longer do, as was asked."""
    partials: Annotated[tuple[Partial, ...], _Words] = ()
    """Signatures of a handover."""
    refused: Annotated[tuple[Annotated[str, Field(max_length=500)], ...], _Words] = ()
    """Why seats did not do as they were asked."""


def seated(committee: Committee, certificate: Certificate) -> Committee:
    """The committee with the shares and the group key of an outcome."""
    outcome = certificate.outcome
    seats = tuple(
        seat.model_copy(update={"share": share})
        for seat, share in zip(committee.seats, outcome.shares, strict=True)
    )
    return committee.model_copy(update={"seats": seats, "group_key": outcome.group_key})


class KeyOffice:
    """Seats of one committee on one machine, where keys are concerned. Thread-safe; blocks.

    Args:
        committee: whose seats these are; without shares as long as it has none.
        keys: their secrets, by index.
        folder: where those lie.
        succession: what this machine's copy of the ledger says; without it no share is handed on.
    """

    def __init__(
        self,
        committee: Committee,
        keys: Mapping[int, SeatKeys],
        folder: Path,
        succession: Callable[[], Succession] | None = None,
    ) -> None:
        self._committee = committee
        self._keys = dict(keys)
        self._folder = folder
        self._succession = succession
        self._lock = threading.Lock()

    def answer(self, request: bytes) -> bytes:
        """Do one step; the same request has the same answer.

        Raises:
            CommitteeError: it cannot be read, or is of a session that these seats have no part in.
        """
        try:
            ask = KeygenAsk.from_canonical(request)
            ask.session.check()
            with self._lock:
                return self._answer(ask).canonical()
        except (EncodingError, KeyMaterialError) as error:
            raise CommitteeError(f"the key generation cannot go on: {error}") from error

    def _answer(self, ask: KeygenAsk) -> KeygenWord:
        match ask.step:
            case KeygenStep.HELLO:
                self._require_taking(ask.session)
                return KeygenWord(
                    hellos=tuple(each.hello() for each in self._insiders(ask.session).values())
                )
            case KeygenStep.DEAL:
                self._require_dealing(ask.session)
                return self._deal(ask)
            case KeygenStep.CHECK:
                self._require_taking(ask.session)
                state = ask.state()
                party = self._insiders(ask.session).values()
                return KeygenWord(
                    complaints=tuple(said for each in party for said in each.complaints(state))
                )
            case KeygenStep.CONFIRM:
                self._require_taking(ask.session)
                return self._confirm(ask)
            case KeygenStep.INSTALL:
                self._require_taking(ask.session)
                return self._install(ask)
            case KeygenStep.HAND_OVER:
                self._require_dealing(ask.session)
                return self._hand_over(ask)
            case KeygenStep.RETIRE:
                return self._retire()

    # What these seats have a part in

    def _require_taking(self, session: Session) -> None:
        mine = self._committee
        if (
            session.holders != tuple(seat.public for seat in mine.seats)
            or session.epoch != mine.epoch
            or session.threshold != mine.quorum
        ):
            raise CommitteeError("the key generation is for another committee than these seats'")
        if any(seat.share is not None for seat in mine.seats):
            raise CommitteeError("these seats have their shares: no others take their place")
        before = session.previous
        if mine.group_key != (before.group_key if before is not None else None):
            raise CommitteeError(
                "these seats' committee has another group key than the one that is handed on"
                if before is not None
                else "these seats' committee has a group key: it is handed on, never made anew"
            )

    def _require_dealing(self, session: Session) -> None:
        if session.previous is None:
            self._require_taking(session)
            return
        mine = self._committee
        if session.dealers != tuple(seat.public for seat in mine.seats) or (
            session.previous.group_key,
            session.previous.shares,
            session.previous.threshold,
        ) != (mine.group_key, tuple(seat.share for seat in mine.seats), mine.quorum):
            raise CommitteeError("these are not the shares that these seats hold")
        following = self._following()
        n = len(session.holders)
        if (
            (following.ledger_id, following.in_office) != (session.ledger_id, mine.epoch)
            or session.epoch != mine.epoch + 1
            or not following.elected
            or session.holders != tuple(seat.public for seat in following.elected)
            or session.threshold != (n + (n - 1) // 3) // 2 + 1
        ):
            raise CommitteeError(
                "these are not the seats that were drawn to take over, as far as the ledger is "
                "final here: bring its blocks, or ask again later"
            )

    def _following(self) -> Succession:
        if self._succession is None:
            raise CommitteeError("this seat host has no copy of the ledger: it hands nothing on")
        try:
            return self._succession()
        except DaifiError as error:
            raise CommitteeError(f"this seat host cannot read its ledger: {error}") from error

    def _insiders(self, session: Session) -> dict[int, Insider]:
        """The seats here that are party to the session; each one's seed is on disk by now."""
        parties = {*session.dealers, *session.holders}
        return {
            index: Insider(session, keys.bls, self._seed(index, session), self._share(index))
            for index, keys in self._keys.items()
            if keys.bls.public in parties
        }

    def _seed(self, index: int, session: Session) -> bytes:
        path = self._path(index, session)
        if not path.exists():
            self._make_way(index)
        return load_secret(path)

    def _make_way(self, index: int) -> None:
        seeds = [path for path in self._remembered(index) if path.name.count(".") == 1]
        for path in sorted(seeds, key=lambda path: path.stat().st_mtime_ns):
            if len(seeds) < _MAX_SESSIONS:
                return
            if not path.with_name(path.name + _CONFIRMED).exists():
                path.unlink()
                seeds.remove(path)
        if len(seeds) >= _MAX_SESSIONS:
            raise CommitteeError(
                f"seat {index} has confirmed too many key generations that came to nothing: "
                f"remove seat-{index:02d}.keygen-* from {self._folder} when none is under way"
            )

    def _remembered(self, index: int) -> list[Path]:
        return list(self._folder.glob(f"seat-{index:02d}.keygen-*"))

    def _share(self, index: int) -> BlsKey | None:
        public = self._committee.seats[index].share
        return None if public is None else SeatKeys.load(self._folder, index, public).share

    def _path(self, index: int, session: Session, suffix: str = "") -> Path:
        name = session.digest.hex()[:32]
        return self._folder / f"seat-{index:02d}.keygen-{name}{suffix}"

    # Steps

    def _deal(self, ask: KeygenAsk) -> KeygenWord:
        if enrol(ask.session, ask.roster) != ask.roster:
            raise CommitteeError("a roster names each holder that is there once, in order")
        party = self._insiders(ask.session).values()
        return KeygenWord(dealings=tuple(each.deal(ask.roster) for each in party))

    def _confirm(self, ask: KeygenAsk) -> KeygenWord:
        state, said, refused = ask.state(), list[Confirmation](), list[str]()
        for index, each in self._insiders(ask.session).items():
            try:
                word, secret = each.confirm(state), each.secret(state)
            except KeyMaterialError as error:
                refused.append(f"seat {index}: {error}"[:500])
                continue
            path = self._path(index, ask.session, _CONFIRMED)
            if keep_first(path, word.outcome) == word.outcome:
                # The word lets others rely on this share: a quorum of words, and it may be the
                # only one that there will ever be.
                self._keep(index, secret)
                said.append(word)
            else:
                refused.append(f"seat {index} has confirmed another outcome of this session")
        return KeygenWord(confirmations=tuple(said), refused=tuple(refused))

    def _keep(self, index: int, share: BlsKey) -> None:
        keep_first(SeatKeys.made_path(self._folder, index, share.public), share.secret)

    def _install(self, ask: KeygenAsk) -> KeygenWord:
        """Have the share of a certified outcome, though one has not confirmed it."""
        outcome, done, refused = self._require_certified(ask).outcome, list[int](), list[str]()
        parties = self._insiders(ask.session)
        state: KeygenState | None = None
        for index in self._keys:
            secret = SeatKeys.load(self._folder, index, outcome.shares[index]).share
            if secret is None:
                state = state or ask.state()
                if state.outcome != outcome:
                    raise CommitteeError(
                        "these messages do not give the outcome that was confirmed"
                    )
                try:
                    secret = parties[index].secret(state)
                except KeyMaterialError as error:
                    refused.append(f"seat {index}: {error}"[:500])
                    continue
            self._keep(index, secret)
            save_secret(SeatKeys.share_path(self._folder, index), secret.secret)
            done.append(index)
        return KeygenWord(installed=tuple(sorted(done)), refused=tuple(refused))

    def _hand_over(self, ask: KeygenAsk) -> KeygenWord:
        certificate, new, mine = self._require_certified(ask), ask.committee, self._committee
        if new is None or ask.session.previous is None:
            raise CommitteeError("a handover names the committee that takes over")
        following = self._following()
        rightful = (
            new.epoch == ask.session.epoch
            and tuple(map(Elected.of, new.seats)) == following.elected
            and tuple(seat.public for seat in new.seats) == ask.session.holders
            and tuple(seat.share for seat in new.seats) == certificate.outcome.shares
            and new.group_key == certificate.outcome.group_key == mine.group_key
        )
        if not rightful:
            raise CommitteeError(
                "this is not the committee that was drawn and that the shares were handed on to"
            )
        if (fault := committee_fault(new)) is not None:
            raise CommitteeError(f"the new committee cannot certify blocks: {fault}")
        message = handover_message(
            following.ledger_id, mine.digest, following.draw, new.epoch, new.digest
        )
        return KeygenWord(
            partials=tuple(
                Partial(seat=index, signature=keys.bls.sign(message))
                for index, keys in self._keys.items()
            )
        )

    def _retire(self) -> KeygenWord:
        """Delete the shares of a committee that is no longer in office."""
        if self._following().in_office <= self._committee.epoch:
            raise CommitteeError("these seats are in office: their shares are needed")
        for index in self._keys:
            for path in (
                SeatKeys.share_path(self._folder, index),
                *self._remembered(index),
                # What a host that was killed while it wrote one of these has left.
                *self._folder.glob(f".seat-{index:02d}.share.*"),
                *self._folder.glob(f".seat-{index:02d}.keygen-*"),
            ):
                path.unlink(missing_ok=True)
        sync_folder(self._folder)
        return KeygenWord(installed=tuple(self._keys))

    def _require_certified(self, ask: KeygenAsk) -> Certificate:
        certificate = ask.certificate
        if certificate is None or not certificate.holds(ask.session):
            raise CommitteeError("no quorum of the holders confirmed this outcome")
        return certificate
