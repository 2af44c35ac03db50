"""Seat hosts make their committee's key and hand it on: kills, traitors, and what seats refuse."""

from __future__ import annotations

import asyncio
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from daifi_flows.cnft import Committee, QuorumCertificate
from daifi_flows.dkg import Complaint, Insider, KeygenState, Session
from daifi_flows.epochs import DrawTerms, Elected, Handover, Succession, committee_fault
from daifi_flows.errors import CommitteeError, EncodingError
from daifi_flows.judges._keygen import KeygenAsk, KeygenStep, KeygenWord, KeyOffice, seated
from daifi_flows.judges._keygen_client import HandedOn, hand_on, make_group_key, retire_seats
from daifi_flows.judges._messages import HostLost
from daifi_flows.judges._seat import SeatKeys, bare_committee
from daifi_flows.keys import load_secret, verify_bls
from daifi_flows.threshold import combine_shares

LEDGER = b"L" * 32
TERMS = DrawTerms(
    epoch=1, since_height=0, height=5, root=bytes(32), beacon=bytes(32), seats=7, per_operator=2
)
DRAW = TERMS.digest


class Host:
    """An office behind a transport that can lose, break off, and lie.

    Args:
        tamper: changes what the seats say.
        away: how many calls are lost; every second one after it was carried out.
    """

    def __init__(
        self,
        committee: Committee,
        seats: Sequence[int],
        folder: Path,
        *,
        succession: Callable[[], Succession] | None = None,
        tamper: Callable[[KeygenAsk, KeygenWord], KeygenWord] | None = None,
        away: int = 0,
        dead: bool = False,
    ) -> None:
        self._parts = (committee, seats, folder, succession)
        self._tamper, self._away, self._dead = tamper, away, dead
        self.asked: list[KeygenStep] = []

    def office(self) -> KeyOffice:
        """A host that was just started."""
        committee, seats, folder, succession = self._parts
        keys = {index: SeatKeys.load(folder, index) for index in seats}
        return KeyOffice(committee, keys, folder, succession)

    async def keygen(self, request: bytes) -> bytes:
        await asyncio.sleep(0)
        if self._dead:
            raise HostLost("it is gone", dead=True)
        if self._away:
            self._away -= 1
            if self._away % 2:
                self.office().answer(request)
            raise HostLost("killed")
        ask = KeygenAsk.from_canonical(request)
        self.asked.append(ask.step)
        word = self.office().answer(request)
        if self._tamper is not None:
            return self._tamper(ask, KeygenWord.from_canonical(word)).canonical()
        return word


def hosts_of(committee: Committee, folder: Path, count: int, **options: Any) -> list[Host]:
    n = len(committee.seats)
    return [
        Host(committee, range(i * n // count, (i + 1) * n // count), folder, **options)
        for i in range(count)
    ]


@pytest.fixture(scope="session")
def bare_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Path, Committee]]:
    """Folders with fresh keys of n seats and no shares; each call gives another folder."""
    made: dict[int, Path] = {}

    def make(n: int) -> tuple[Path, Committee]:
        if n not in made:
            made[n] = tmp_path_factory.mktemp(f"bare{n}")
            bare_committee(made[n], n)
        folder = tmp_path_factory.mktemp("seats") / "keys"
        shutil.copytree(made[n], folder)
        return folder, bare_committee(folder, n)

    return make


def check_shares(committee: Committee, folder: Path) -> bytes:
    """The group's signature over a message, from the key files alone."""
    assert committee_fault(committee) is None
    signed: dict[int, bytes] = {}
    for seat in committee.seats:
        path = SeatKeys.share_path(folder, seat.index)
        if path.exists():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            keys = SeatKeys.load(folder, seat.index)
            assert keys.share is not None and keys.share.public == seat.share
            signed[seat.index] = keys.share.sign(b"m")
    assert len(signed) >= committee.quorum
    first = dict(list(signed.items())[: committee.quorum])
    last = dict(list(signed.items())[-committee.quorum :])
    signature = combine_shares(first)
    assert signature == combine_shares(last)
    assert verify_bls(committee.group_key or b"", b"m", signature)
    return signature


async def test_twenty_one_seats_make_a_key_that_nobody_was_dealt(bare_of: Any) -> None:
    folder, bare = bare_of(21)
    committee = await make_group_key(hosts_of(bare, folder, 3), bare, ledger_id=LEDGER)
    check_shares(committee, folder)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.glob("seat-*")} == {0o600}
    assert not (folder / "dealer").exists()
    assert [seat.public for seat in committee.seats] == [seat.public for seat in bare.seats]


async def test_two_committees_have_two_keys(bare_of: Any) -> None:
    keys: set[bytes | None] = set()
    for _ in range(2):
        folder, bare = bare_of(4)
        made = await make_group_key(hosts_of(bare, folder, 2), bare, ledger_id=LEDGER)
        keys.add(made.group_key)
    assert len(keys) == 2


@pytest.mark.parametrize("away", [1, 2, 3, 4])
async def test_killed_hosts_say_the_same_again(bare_of: Any, away: int) -> None:
    """Every host is killed some times, before and after it has done what it was asked."""
    folder, bare = bare_of(4)
    hosts = [Host(bare, [i], folder, away=away) for i in range(4)]
    committee = await make_group_key(hosts, bare, ledger_id=LEDGER, grace_s=60)
    check_shares(committee, folder)
    assert len(list(folder.glob("*.share"))) == 4


async def test_a_session_that_fails_at_its_last_step_is_done_again(bare_of: Any) -> None:
    """No seat's word arrives in the first session; in the next all secrets are fresh."""
    folder, bare = bare_of(4)
    failed: set[bytes] = set()

    def fail_once(ask: KeygenAsk, word: KeygenWord) -> KeygenWord:
        if ask.step is not KeygenStep.CONFIRM:
            return word
        failed.add(ask.session.digest)
        return KeygenWord() if len(failed) == 1 else word

    hosts = hosts_of(bare, folder, 2, tamper=fail_once)
    committee = await make_group_key(hosts, bare, ledger_id=LEDGER)
    assert len(failed) == 2
    check_shares(committee, folder)


async def test_a_host_that_is_gone_is_not_waited_for_long(bare_of: Any) -> None:
    folder, bare = bare_of(7)
    hosts = [Host(bare, [i], folder, dead=i in (2, 5)) for i in range(7)]
    committee = await make_group_key(hosts, bare, ledger_id=LEDGER)
    check_shares(committee, folder)
    assert not SeatKeys.share_path(folder, 2).exists()


async def test_too_few_seats_make_no_key(bare_of: Any) -> None:
    folder, bare = bare_of(7)
    hosts = [Host(bare, [i], folder, dead=i < 3) for i in range(7)]
    with pytest.raises(CommitteeError, match="4 holders are there"):
        await make_group_key(hosts, bare, ledger_id=LEDGER, grace_s=0.1)
    hosts = [Host(bare, [i], folder, away=10**6) for i in range(7)]
    with pytest.raises(CommitteeError, match="too few seats took part"):
        await make_group_key(hosts, bare, ledger_id=LEDGER, timeout_s=0.2)


# Traitors. Each host holds one seat and its real key, and changes what that seat says.


def false_complaints(ask: KeygenAsk, folder: Path, seat: int) -> tuple[Complaint, ...]:
    """Complaints of a seat about boxes that were right."""
    session, state = ask.session, KeygenState(ask.session, ask.roster)
    for dealing in ask.dealings:
        if dealing.dealer != seat:
            boxes = [*dealing.boxes[:seat], bytes(80), *dealing.boxes[seat + 1 :]]
            broken = dealing.model_copy(update={"boxes": tuple(boxes)})
            state = state.add(broken.sign(SeatKeys.load(folder, dealing.dealer).bls))
    seed = load_secret(folder / f"seat-{seat:02d}.keygen-{session.digest.hex()[:32]}")
    said = Insider(session, SeatKeys.load(folder, seat).bls, seed).complaints(state)
    assert said
    return said


def lying(folder: Path, seat: int, how: str) -> Callable[[KeygenAsk, KeygenWord], KeygenWord]:
    """A seat that follows the protocol but for one thing."""
    key = SeatKeys.load(folder, seat).bls

    def tamper(ask: KeygenAsk, word: KeygenWord) -> KeygenWord:
        changed: dict[str, Any] = {}
        if ask.step is KeygenStep.DEAL:
            (dealing,) = word.dealings
            boxes, points = list(dealing.boxes), dealing.commitments
            if how == "wrong shares":
                boxes[:3] = [bytes(80)] * 3
            elif how == "no share":
                boxes[-1] = b""
            elif how == "degree":
                points = points[:-1]
            elif how == "no points":
                points = (b"\xff" * 48,) * len(points)
            elif how == "silent dealer":
                return KeygenWord()
            altered = dealing.model_copy(update={"boxes": tuple(boxes), "commitments": points})
            changed["dealings"] = (altered.sign(key),)
            if how == "two dealings":
                other = dealing.model_copy(update={"boxes": (bytes(80), *boxes[1:])}).sign(key)
                changed["dealings"] = (dealing, other)
        if ask.step is KeygenStep.CHECK and how == "false complaints":
            changed["complaints"] = false_complaints(ask, folder, seat)
        if ask.step is KeygenStep.CONFIRM and how == "another outcome":
            (said,) = word.confirmations
            changed["confirmations"] = (said.model_copy(update={"outcome": bytes(32)}).sign(key),)
        return word.model_copy(update=changed)

    return tamper


LIES = [
    "wrong shares", "no share", "degree", "no points", "silent dealer", "two dealings",
    "false complaints", "another outcome",
]  # fmt: skip


@pytest.mark.parametrize("how", LIES)
async def test_one_traitor_of_four(bare_of: Any, how: str) -> None:
    folder, bare = bare_of(4)
    hosts = [
        Host(bare, [i], folder, tamper=lying(folder, i, how) if i == 3 else None) for i in range(4)
    ]
    committee = await make_group_key(hosts, bare, ledger_id=LEDGER, grace_s=0.5)
    check_shares(committee, folder)
    assert {SeatKeys.share_path(folder, i).exists() for i in range(3)} == {True}


async def test_six_traitors_of_twenty_one(bare_of: Any) -> None:
    folder, bare = bare_of(21)
    traitors = dict(zip((0, 4, 9, 13, 17, 20), LIES[:5] + LIES[7:], strict=True))
    hosts = [
        Host(bare, [i], folder, tamper=lying(folder, i, traitors[i]) if i in traitors else None)
        for i in range(21)
    ]
    committee = await make_group_key(hosts, bare, ledger_id=LEDGER, grace_s=1.0)
    check_shares(committee, folder)
    honest = [i for i in range(21) if i not in traitors]
    assert all(SeatKeys.share_path(folder, i).exists() for i in honest)


# What seats refuse


def ask_hello(bare: Committee, **changed: Any) -> KeygenAsk:
    session = Session.generate(
        LEDGER, bare.epoch, tuple(seat.public for seat in bare.seats), bare.quorum
    )
    return KeygenAsk(step=KeygenStep.HELLO, session=session.model_copy(update=changed))


def test_a_seat_makes_keys_with_its_own_committee_only(bare_of: Any) -> None:
    folder, bare = bare_of(4)
    office = Host(bare, [0, 1], folder).office()
    word = KeygenWord.from_canonical(office.answer(ask_hello(bare).canonical()))
    assert [hello.holder for hello in word.hellos] == [0, 1]
    _, other = bare_of(7)
    stranger = other.seats[6].public
    swapped = (*(seat.public for seat in bare.seats[:3]), stranger)
    for changed in (
        {"holders": swapped, "dealers": swapped},
        {"threshold": 2},
        {"epoch": 5},
    ):
        with pytest.raises(CommitteeError, match="another committee"):
            office.answer(ask_hello(bare, **changed).canonical())
    for data in (b"", b"junk", ask_hello(bare).canonical()[:-2]):
        with pytest.raises(CommitteeError):
            office.answer(data)


async def test_a_seat_whose_committee_has_a_key_makes_no_other(bare_of: Any) -> None:
    folder, bare = bare_of(4)
    made = await make_group_key(hosts_of(bare, folder, 1), bare, ledger_id=LEDGER)
    office = Host(made, [0], folder).office()
    with pytest.raises(CommitteeError, match="have their shares"):
        office.answer(ask_hello(bare).canonical())
    keyed = bare.model_copy(update={"group_key": made.group_key})
    with pytest.raises(CommitteeError, match="never made anew"):
        Host(keyed, [0], folder).office().answer(ask_hello(bare).canonical())


def test_sessions_that_come_to_nothing_do_not_fill_the_disk(bare_of: Any) -> None:
    folder, bare = bare_of(4)
    office = Host(bare, [0], folder).office()
    first = office.answer(ask_hello(bare).canonical())
    for attempt in range(1, 1000):
        office.answer(ask_hello(bare, attempt=attempt).canonical())
    assert len(list(folder.glob("*keygen*"))) == 64
    assert office.answer(ask_hello(bare).canonical()) != first, "the oldest made way"
    assert office.answer(ask_hello(bare, attempt=999).canonical())


def test_what_was_confirmed_makes_no_way(bare_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daifi_flows.judges._keygen._MAX_SESSIONS", 3)
    folder, bare = bare_of(4)
    office = Host(bare, range(4), folder).office()
    kept = [made_by(office, bare, attempt) for attempt in range(2)]
    for attempt in range(2, 9):
        office.answer(ask_hello(bare, attempt=attempt).canonical())
    for ask in kept:
        assert answer(office, ask.model_copy(update={"step": KeygenStep.CONFIRM})).confirmations
    made_by(office, bare, 9)
    with pytest.raises(CommitteeError, match="confirmed too many key generations"):
        office.answer(ask_hello(bare, attempt=10).canonical())


def answer(office: KeyOffice, ask: KeygenAsk) -> KeygenWord:
    return KeygenWord.from_canonical(office.answer(ask.canonical()))


def made_by(office: KeyOffice, bare: Committee, attempt: int) -> KeygenAsk:
    """A session that one host's seats take part in up to its certificate; the request that has
    them install it."""
    ask = ask_hello(bare, attempt=attempt)
    ask = ask.model_copy(update={"roster": answer(office, ask).hellos, "step": KeygenStep.DEAL})
    dealings = answer(office, ask).dealings
    ask = ask.model_copy(update={"dealings": dealings, "step": KeygenStep.CONFIRM})
    state = ask.state()
    for said in answer(office, ask).confirmations:
        state = state.add(said)
    assert state.certificate is not None
    return ask.model_copy(update={"certificate": state.certificate, "step": KeygenStep.INSTALL})


def sign_as(committee: Committee, folder: Path) -> int:
    """How many seats have the share that the committee names, once they are started with it."""
    seats = committee.seats
    keys = [SeatKeys.load(folder, seat.index, seat.share) for seat in seats]
    held = {each.index: each.share for each in keys if each.share is not None}
    assert all(share.public == seats[index].share for index, share in held.items())
    return len(held)


async def test_no_share_is_lost_whatever_seats_are_told_to_install(bare_of: Any) -> None:
    """Whoever carries the messages may run two sessions to the end, have half of the seats install
    the one and half the other, and then put either in office."""
    folder, bare = bare_of(4)
    offices = [Host(bare, seats, folder).office() for seats in (range(4), (0, 1), (2, 3))]
    one, two = (made_by(offices[0], bare, attempt) for attempt in (0, 1))
    made = [seated(bare, ask.certificate) for ask in (one, two) if ask.certificate]
    assert made[0].group_key != made[1].group_key
    assert [sign_as(each, folder) for each in made] == [4, 4], "who confirms has its share"
    answer(offices[1], one)
    answer(offices[2], two)
    assert [sign_as(each, folder) for each in made] == [4, 4]
    for _ in range(2):  # and the other way round
        assert answer(offices[1], two).installed == (0, 1)
        assert answer(offices[2], one).installed == (2, 3)
    three = made_by(offices[0], bare, 2)  # and after it, a third
    answer(offices[0], three)
    assert [sign_as(each, folder) for each in made] == [4, 4]
    # One outcome a session: that holds after it is installed, too.
    for ask in (one, two, three):
        asked = ask.model_copy(update={"step": KeygenStep.CONFIRM, "dealings": ask.dealings[1:]})
        word = answer(offices[0], asked)
        assert not word.confirmations and len(word.refused) == 4
    stranger = SeatKeys.load(folder, 0, bare.seats[0].public)
    assert stranger.share is None, "no other share than the committee's is taken"


async def test_no_host_speaks_for_another(bare_of: Any) -> None:
    """A host that says that everybody has answered ends nobody's time."""
    folder, bare = bare_of(7)

    def boast(ask: KeygenAsk, word: KeygenWord) -> KeygenWord:
        if ask.step is KeygenStep.HELLO:
            mine = word.hellos[0]
            others = (mine.model_copy(update={"holder": index}) for index in range(6))
            return word.model_copy(update={"hellos": (mine, *others)})
        if ask.step is KeygenStep.INSTALL:
            return word.model_copy(update={"installed": tuple(range(7))})
        return word

    class Slow(Host):
        async def keygen(self, request: bytes) -> bytes:
            await asyncio.sleep(0.3)
            return await super().keygen(request)

    hosts = [*(Slow(bare, [i], folder) for i in range(6)), Host(bare, [6], folder, tamper=boast)]
    committee = await make_group_key(hosts, bare, ledger_id=LEDGER, grace_s=0.05)
    assert sign_as(committee, folder) >= committee.quorum


async def test_a_seat_confirms_one_outcome_a_session(bare_of: Any) -> None:
    """A coordinator that shows different dealings to different seats gets no two keys."""
    folder, bare = bare_of(4)
    office = Host(bare, range(4), folder).office()

    def say(ask: KeygenAsk) -> KeygenWord:
        return KeygenWord.from_canonical(office.answer(ask.canonical()))

    hello = ask_hello(bare)
    roster = say(hello).hellos
    deal = hello.model_copy(update={"step": KeygenStep.DEAL, "roster": roster})
    dealings = say(deal).dealings
    confirm = deal.model_copy(update={"step": KeygenStep.CONFIRM})
    first = say(confirm.model_copy(update={"dealings": dealings}))
    assert len(first.confirmations) == 4
    second = say(confirm.model_copy(update={"dealings": dealings[1:]}))
    assert not second.confirmations and len(second.refused) == 4
    assert say(confirm.model_copy(update={"dealings": dealings})) == first
    install = confirm.model_copy(update={"step": KeygenStep.INSTALL, "dealings": dealings})
    with pytest.raises(CommitteeError, match="no quorum"):
        say(install)
    state = confirm.model_copy(update={"dealings": dealings}).state()
    for confirmation in first.confirmations:
        state = state.add(confirmation)
    proven = install.model_copy(update={"certificate": state.certificate})
    for path in folder.glob("*.made"):  # as if these seats had not confirmed it themselves
        path.unlink()
    for wrong in (dealings[1:], ()):  # other messages than those that were confirmed
        with pytest.raises(CommitteeError, match="do not give the outcome"):
            say(proven.model_copy(update={"dealings": wrong}))
    for wrong in (roster[::-1], roster[:2], (*roster[:3], roster[0])):
        with pytest.raises(CommitteeError):
            say(deal.model_copy(update={"roster": wrong}))
    assert not list(folder.glob("*.share"))
    assert say(proven).installed == (0, 1, 2, 3)
    assert say(proven).installed == (0, 1, 2, 3)  # and again, when the answer was lost


# Handing on


def next_committee(folder: Path, n: int, old: Committee) -> Committee:
    return bare_committee(folder, n, old.epoch + 1).model_copy(update={"group_key": old.group_key})


def says(old: Committee, new: Committee, **changed: Any) -> Callable[[], Succession]:
    elected = tuple(Elected.of(seat) for seat in new.seats)
    found = Succession(ledger_id=LEDGER, in_office=old.epoch, draw=DRAW, elected=elected)
    return lambda: found.model_copy(update=changed)


def handing(
    old_hosts: Sequence[Host], old: Committee, new_hosts: Sequence[Host], new: Committee
) -> Any:
    return hand_on(old_hosts, old, new_hosts, new, ledger_id=LEDGER, draw=DRAW, grace_s=1.0)


@pytest.fixture(scope="session")
def epochs(bare_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A committee of 7, the seats of the next, some of whose keys are the same nodes', and the
    folders of both."""
    folder, bare = bare_of(7)
    old = asyncio.run(make_group_key(hosts_of(bare, folder, 2), bare, ledger_id=LEDGER))
    after = tmp_path_factory.mktemp("next")
    for seat, name in ((5, 0), (6, 1)):  # two nodes stay, in other seats
        for kind in ("bls", "account"):
            shutil.copy(folder / f"seat-{seat:02d}.{kind}", after / f"seat-{name:02d}.{kind}")
    return folder, old, after, next_committee(after, 7, old)


async def test_shares_are_handed_on_and_the_key_stays(epochs: Any) -> None:
    folder, old, after, new = epochs
    old_hosts = hosts_of(old, folder, 2, succession=says(old, new))
    done: HandedOn = await handing(old_hosts, old, hosts_of(new, after, 3), new)
    assert done.committee.group_key == old.group_key
    assert check_shares(done.committee, after) == check_shares(old, folder)
    assert not {seat.share for seat in done.committee.seats} & {seat.share for seat in old.seats}
    handover = Handover(
        ledger_id=LEDGER, previous=old.digest, draw=TERMS, committee=done.committee,
        certificate=done.certificate,
    )  # fmt: skip
    handover.check(old)
    with pytest.raises(EncodingError):
        handover.model_copy(update={"draw": TERMS.model_copy(update={"height": 6})}).check(old)
    assert isinstance(done.certificate, QuorumCertificate)
    # Not before the ledger says so, seats delete what they hold.
    assert await retire_seats(old_hosts, done) == 0
    check_shares(old, folder)
    kept = folder.parent / "kept"
    shutil.copytree(folder, kept)
    for name in (".seat-03.share.0a1b2c3d", ".seat-03.keygen-00.0a1b2c3d"):  # killed in a write
        (kept / name).write_bytes((kept / "seat-03.share").read_bytes())
    gone = hosts_of(old, kept, 2, succession=says(old, new, in_office=1))
    assert await retire_seats(gone, done) == 7
    assert {path.suffix for path in kept.iterdir()} == {".bls", ".account"}


async def test_a_traitor_on_each_side_of_a_handover(epochs: Any) -> None:
    folder, old, after, new = epochs
    succession = says(old, new)
    lie = lying(folder, 0, "wrong shares")
    old_hosts = [
        Host(old, [i], folder, succession=succession, tamper=lie if i == 0 else None, dead=i == 1)
        for i in range(7)
    ]
    new_hosts = [Host(new, [i], after, dead=i in (3, 4)) for i in range(7)]
    done = await handing(old_hosts, old, new_hosts, new)
    assert done.committee.group_key == old.group_key
    assert done.certificate.signers.bit_count() >= old.quorum


@pytest.mark.parametrize(
    "changed",
    [
        {"elected": ()},
        {"in_office": 1},
        {"ledger_id": bytes(32)},
        {"elected": "reversed"},
        None,
    ],
    ids=["nobody", "later", "another ledger", "others", "no ledger"],
)
async def test_seats_hand_on_to_nobody_who_was_not_drawn(
    epochs: Any, changed: dict[str, Any] | None
) -> None:
    folder, old, after, new = epochs
    if changed is not None and changed.get("elected") == "reversed":
        changed = {"elected": tuple(Elected.of(seat) for seat in reversed(new.seats))}
    succession = None if changed is None else says(old, new, **changed)
    old_hosts = hosts_of(old, folder, 1, succession=succession)
    with pytest.raises(CommitteeError, match="no quorum"):
        await handing(old_hosts, old, hosts_of(new, after, 1), new)


async def test_a_handover_is_signed_to_confirmed_shares_only(epochs: Any) -> None:
    folder, old, after, new = epochs
    succession = says(old, new)
    asked: list[KeygenAsk] = []

    def watch(ask: KeygenAsk, word: KeygenWord) -> KeygenWord:
        asked.append(ask)
        return word

    old_hosts = hosts_of(old, folder, 1, succession=succession, tamper=watch)
    done = await handing(old_hosts, old, hosts_of(new, after, 1), new)
    # Seats that have their shares take no others, though the old ones would deal again.
    with pytest.raises(CommitteeError, match="0 holders are there"):
        await handing(old_hosts, old, hosts_of(done.committee, after, 1), done.committee)
    check_shares(done.committee, after)
    office, ask = old_hosts[0].office(), asked[-1]
    assert ask.step is KeygenStep.HAND_OVER and ask.committee is not None
    assert ask.certificate is not None
    assert KeygenWord.from_canonical(office.answer(ask.canonical())).partials
    shuffled = ask.committee.model_copy(update={"seats": ask.committee.seats[::-1]})
    short = ask.certificate.model_copy(
        update={"confirmations": ask.certificate.confirmations[: ask.session.quorum - 1]}
    )
    for changed in (
        {"committee": None},
        {"committee": old},
        {"committee": shuffled},
        {"committee": ask.committee.model_copy(update={"epoch": 9})},
        *({"committee": altered} for altered in seats_altered(ask.committee)),
        {"certificate": None},
        {"certificate": short},
    ):
        with pytest.raises(CommitteeError):
            office.answer(ask.model_copy(update=changed).canonical())


def seats_altered(committee: Committee) -> list[Committee]:
    """The same keys and shares, for others than were drawn."""
    first, *rest = committee.seats
    changes: list[dict[str, Any]] = [
        {"account": rest[0].account}, {"operator": rest[0].account}, {"weight": 10**9},
    ]  # fmt: skip
    return [
        committee.model_copy(update={"seats": (first.model_copy(update=change), *rest)})
        for change in changes
    ]


# Real hosts


def lying_hosts(traitors: Sequence[int]) -> type[Any]:
    """Seat hosts whose traitors deal half of the others nothing that opens. A local class, so that
    it reaches Ray's workers by value."""
    from daifi_flows.judges._keygen import KeygenWord
    from daifi_flows.judges.actor import SeatHost

    class LyingHost(SeatHost):
        async def keygen(self, request: bytes) -> bytes:
            word = KeygenWord.from_canonical(await super().keygen(request))
            dealings = [
                dealing
                if dealing.dealer not in traitors
                else dealing.model_copy(
                    update={"boxes": (bytes(80),) * 10 + dealing.boxes[10:]}
                ).sign(self._office.keys[dealing.dealer].bls)
                for dealing in word.dealings
            ]
            return word.model_copy(update={"dealings": tuple(dealings)}).canonical()

    return LyingHost


@pytest.mark.slow
async def test_ray_hosts_make_a_key_with_six_traitors_and_a_kill(
    ray_cluster: None, bare_of: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    from daifi_flows.judges.actor import RaySeats

    folder, bare = bare_of(21)
    actor: Any = ray.remote(lying_hosts((0, 3, 8, 11, 15, 20)))
    hosts = [
        actor.options(max_restarts=-1, max_task_retries=0, max_concurrency=8, num_cpus=0).remote(
            bare,
            list(range(7 * number, 7 * number + 7)),
            folder,
            reference_factory=None,
            validator_factory=None,
            workdir=tmp_path / "seats",
        )
        for number in range(3)
    ]
    try:
        making = asyncio.ensure_future(
            make_group_key([RaySeats(h) for h in hosts], bare, ledger_id=LEDGER, grace_s=60)
        )
        while not list(folder.glob("*keygen*")):  # the first hello is on its way
            await asyncio.sleep(0.01)
        ray.kill(hosts[1], no_restart=False)
        committee = await making
    finally:
        for host in hosts:
            ray.kill(host)
    check_shares(committee, folder)
    assert len(list(folder.glob("*.share"))) == 21
    said = [record.getMessage().split() for record in caplog.records]
    blamed = {int(words[1]) for words in said if words[-5:] == ["left", "out", "of", "the", "key"]}
    assert blamed == {0, 3, 8, 11, 15, 20}
