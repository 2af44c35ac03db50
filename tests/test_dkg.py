"""Distributed key generation: honest parties get one key and sound shares, whatever others do."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from blspy import G1Element
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from daifi_flows.dkg import (
    Complaint,
    Confirmation,
    DealtShares,
    Hello,
    Insider,
    KeygenState,
    Outcome,
    Previous,
    Session,
    Signed,
    enrol,
)
from daifi_flows.errors import EncodingError, KeyMaterialError
from daifi_flows.keys import BlsKey, verify_bls
from daifi_flows.threshold import combine_shares, deal, recover_signature, shares_sound

N, T = 21, 14
LEDGER = b"L" * 32
KEYS = [BlsKey.from_seed(b"holder %d" % i) for i in range(N)]
OTHERS = [BlsKey.from_seed(b"successor %d" % i) for i in range(N)]


def seed(i: int) -> bytes:
    return b"seed" * 8 + bytes([i])


def session(n: int = N, t: int = T, **changed: Any) -> Session:
    made = Session.generate(LEDGER, 0, tuple(key.public for key in KEYS[:n]), t)
    return made.model_copy(update=changed).check()


def insiders(made: Session, keys: Sequence[BlsKey] = KEYS) -> list[Insider]:
    return [Insider(made, key, seed(i)) for i, key in enumerate(keys[: len(made.holders)])]


def reduce(state: KeygenState, messages: Iterable[Signed]) -> KeygenState:
    for message in messages:
        state = state.add(message)
    return state


def sign_with(outcome: Outcome, threshold: int, secrets: dict[int, BlsKey]) -> bytes:
    """The group's signature, from these holders."""
    shares = {i: secret.sign(b"m") for i, secret in secrets.items()}
    return recover_signature(outcome.group_key, outcome.shares, threshold, b"m", shares)


MADE = session()
PARTY = insiders(MADE)
ROSTER = enrol(MADE, [each.hello() for each in PARTY])
DEALINGS = [each.deal(ROSTER) for each in PARTY]
DEALT = reduce(KeygenState(MADE, ROSTER), DEALINGS)
OUTCOME = DEALT.outcome


def test_all_honest_get_one_key_and_sound_shares() -> None:
    assert OUTCOME is not None
    assert DEALT.faults == {} and OUTCOME.dealers == tuple(range(N))
    assert all(each.complaints(DEALT) == () for each in PARTY)
    assert shares_sound(OUTCOME.group_key, OUTCOME.shares, T)
    secrets = {i: each.secret(DEALT) for i, each in enumerate(PARTY)}
    assert {i: key.public for i, key in secrets.items()} == dict(enumerate(OUTCOME.shares))
    first = sign_with(OUTCOME, T, {i: secrets[i] for i in range(T)})
    assert verify_bls(OUTCOME.group_key, b"m", first)
    assert sign_with(OUTCOME, T, {i: secrets[i] for i in range(N - T, N)}) == first
    few = {i: secrets[i].sign(b"m") for i in range(T - 1)}
    assert not verify_bls(OUTCOME.group_key, b"m", combine_shares(few))


def test_a_quorum_of_confirmations_makes_a_certificate() -> None:
    said = [each.confirm(DEALT) for each in PARTY]
    assert reduce(DEALT, said[: MADE.quorum - 1]).certificate is None
    certificate = reduce(DEALT, said[: MADE.quorum]).certificate
    assert certificate is not None and certificate.holds(MADE)
    assert not certificate.holds(session(attempt=1))
    again = certificate.model_copy(
        update={"confirmations": (certificate.confirmations[0],) * MADE.quorum}
    )
    assert not again.holds(MADE)
    other = certificate.outcome.model_copy(update={"group_key": KEYS[0].public})
    assert not certificate.model_copy(update={"outcome": other}).holds(MADE)


def test_who_starts_again_says_the_same() -> None:
    again = Insider(MADE, KEYS[3], seed(3))
    assert again.hello() == PARTY[3].hello()
    assert again.deal(ROSTER) == DEALINGS[3]
    assert again.confirm(DEALT) == PARTY[3].confirm(DEALT)
    assert "seed" not in repr(again)


def test_messages_survive_the_wire() -> None:
    confirmation = PARTY[0].confirm(DEALT)
    for message in (ROSTER[0], DEALINGS[0], confirmation):
        assert type(message).from_canonical(message.canonical()) == message
    assert len(DEALINGS[0].canonical()) < 3000


# Dealers that cheat


def forged(dealer: int, **changed: Any) -> DealtShares:
    """A dealing with some fields changed, signed by its dealer."""
    return DEALINGS[dealer].model_copy(update=changed).sign(KEYS[dealer])


def swapped_boxes(dealer: int, *holders: int) -> DealtShares:
    """Boxes of these holders taken from another dealing: they do not open."""
    boxes = list(DEALINGS[dealer].boxes)
    for holder in holders:
        boxes[holder] = DEALINGS[(dealer + 1) % N].boxes[holder]
    return forged(dealer, boxes=tuple(boxes))


def other_polynomial(dealer: int, *holders: int) -> DealtShares:
    """Boxes that open, with values of another polynomial than the one committed to."""
    liar = Insider(MADE, KEYS[dealer], b"another polynomial" * 2).deal(ROSTER)
    boxes = list(DEALINGS[dealer].boxes)
    for holder in holders:
        boxes[holder] = liar.boxes[holder]
    return forged(dealer, boxes=tuple(boxes))


def commitments(dealer: int, *changed: bytes) -> DealtShares:
    return forged(dealer, commitments=(*DEALINGS[dealer].commitments[: -len(changed)], *changed))


INFINITY = bytes(G1Element())
NO_POINT = b"\xff" * 48


def off_subgroup() -> bytes:
    """A point of the curve outside the group of prime order."""
    for x in range(1, 100):
        data = b"\x80" + bytes(46) + bytes([x])
        try:
            G1Element.from_bytes_unchecked(data)
        except (ValueError, RuntimeError):
            continue
        return data
    raise AssertionError("half of all x are on the curve")


CHEATS: dict[str, tuple[Callable[[int], list[DealtShares]], str]] = {
    "silent": (lambda _: [], "dealt nothing"),
    "a box for nobody": (lambda d: [swapped_boxes(d, 9)], "dealt holder 9 a wrong share"),
    "wrong shares to some": (lambda d: [other_polynomial(d, 8, 12)], "dealt holder 8"),
    "wrong shares to all": (lambda d: [other_polynomial(d, *range(N))], "a wrong share"),
    "garbage in a box": (
        lambda d: [forged(d, boxes=(*DEALINGS[d].boxes[:-1], bytes(80)))],
        "dealt holder 20 a wrong share",
    ),
    "no share": (
        lambda d: [forged(d, boxes=(*DEALINGS[d].boxes[:-1], b""))],
        "did not deal to everybody",
    ),
    "a short box": (
        lambda d: [forged(d, boxes=(*DEALINGS[d].boxes[:-1], bytes(79)))],
        "did not deal to everybody",
    ),
    "too few boxes": (
        lambda d: [forged(d, boxes=DEALINGS[d].boxes[:-1])],
        "did not deal to everybody",
    ),
    "too many boxes": (
        lambda d: [forged(d, boxes=(*DEALINGS[d].boxes, bytes(80)))],
        "did not deal to everybody",
    ),
    "a higher degree": (
        lambda d: [forged(d, commitments=(*DEALINGS[d].commitments, KEYS[0].public))],
        "another degree",
    ),
    "a lower degree": (
        lambda d: [forged(d, commitments=DEALINGS[d].commitments[:-1])],
        "another degree",
    ),
    "no point": (lambda d: [commitments(d, NO_POINT)], "no point of G1"),
    "a point of another group": (lambda d: [commitments(d, off_subgroup())], "no point of G1"),
    "infinity": (lambda d: [commitments(d, INFINITY)], "no point of G1"),
    "another coefficient": (lambda d: [commitments(d, KEYS[0].public)], "a wrong share"),
    "two dealings": (lambda d: [DEALINGS[d], other_polynomial(d, 1)], "dealt twice"),
    "another's dealing": (
        lambda d: [
            forged(d, commitments=DEALINGS[7].commitments, boxes=DEALINGS[7].boxes),
        ],
        "a wrong share",
    ),
}


def play(
    cheats: dict[int, list[DealtShares]], *, traitors: frozenset[int] = frozenset()
) -> tuple[KeygenState, dict[int, BlsKey]]:
    """Everybody deals, the honest complain, and the state with each honest holder's secret."""
    dealt = [d for i in range(N) for d in cheats.get(i, [DEALINGS[i]])]
    state = reduce(KeygenState(MADE, ROSTER), dealt)
    honest = [each for i, each in enumerate(PARTY) if i not in traitors | set(cheats)]
    state = reduce(state, [said for each in honest for said in each.complaints(state)])
    return state, {each.holder or 0: each.secret(state) for each in honest}


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheating_dealer_is_left_out(name: str) -> None:
    make, fault = CHEATS[name]
    state, secrets = play({3: make(3)})
    assert list(state.faults) == [3] and fault in state.faults[3]
    assert state.outcome is not None and 3 not in state.outcome.dealers
    assert state.false_complaints == ()
    assert verify_bls(state.outcome.group_key, b"m", sign_with(state.outcome, T, secrets))
    assert shares_sound(state.outcome.group_key, state.outcome.shares, T)


def test_six_of_twenty_one_cheat_each_in_a_way_of_its_own() -> None:
    draw = random.Random(5)
    for _ in range(3):
        chosen = draw.sample(sorted(CHEATS), 6)
        cheats = {
            dealer: CHEATS[name][0](dealer)
            for dealer, name in zip(draw.sample(range(N), 6), chosen, strict=True)
        }
        state, secrets = play(cheats)
        assert set(state.faults) == set(cheats)
        assert state.outcome is not None
        certified = reduce(
            state, [each.confirm(state) for i, each in enumerate(PARTY) if i not in cheats]
        )
        assert certified.certificate is not None and certified.certificate.holds(MADE)
        assert verify_bls(state.outcome.group_key, b"m", sign_with(state.outcome, T, secrets))


def test_too_few_dealers_give_no_key() -> None:
    state = reduce(KeygenState(MADE, ROSTER), DEALINGS[: T - 1])
    assert state.outcome is None and state.certificate is None
    with pytest.raises(KeyMaterialError, match="no outcome"):
        PARTY[0].confirm(state)
    assert reduce(state, DEALINGS[T - 1 : T]).outcome is not None


def test_silent_dealers_may_be_seven() -> None:
    state = reduce(KeygenState(MADE, ROSTER), DEALINGS[7:])
    assert state.outcome is not None and state.outcome.dealers == tuple(range(7, N))
    assert PARTY[0].secret(state).public == state.outcome.shares[0]  # silent, and a holder


# Complaints


def complaint(by: int, about: int, /, **changed: Any) -> Complaint:
    state = reduce(KeygenState(MADE, ROSTER), [swapped_boxes(about, by)])
    (said,) = PARTY[by].complaints(state)
    return said.model_copy(update=changed).sign(KEYS[by])


def test_a_false_complaint_convicts_nobody() -> None:
    state = DEALT.add(complaint(4, 11))
    assert state.faults == {} and state.outcome == OUTCOME
    assert state.false_complaints == ((4, 11),)


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ({"opening": bytes(32)}, "wrong-opening"),
        ({"opening": b"\x01" * 32}, "wrong-opening"),
        ({"dealer": 12}, "wrong-opening"),
        ({"dealer": 62}, "unknown-holder"),
        ({"holder": 5}, "wrong-opening"),
        ({"holder": 40}, "unknown-holder"),
        ({"session": bytes(32)}, "other-session"),
        ({"roster": bytes(32)}, "other-session"),
    ],
)
def test_a_malformed_complaint_is_dropped(changed: dict[str, Any], kind: str) -> None:
    state = DEALT.add(complaint(4, 11, **changed))
    assert {word for word, _ in state.dropped} == {kind}
    assert state.complaints == {} and state.outcome == OUTCOME


def test_without_its_share_a_holder_confirms_nothing() -> None:
    state = reduce(KeygenState(MADE, ROSTER), [swapped_boxes(0, 9), *DEALINGS[1:]])
    with pytest.raises(KeyMaterialError, match="must complain"):
        PARTY[9].confirm(state)
    assert PARTY[8].confirm(state).holder == 8


def test_a_flood_of_messages_costs_little_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 63 seats there may be 3,969 complaints: session and roster are hashed and checked once,
    and a signature only of what shows a key that nobody but the holder has."""
    hashed: list[Hello] = []
    digest = Hello.digest.fget

    def unwanted(*_: object) -> bool:
        pytest.fail("a pairing for nothing")

    assert digest is not None
    monkeypatch.setattr(
        Hello, "digest", property(lambda hello: hashed.append(hello) or digest(hello))
    )
    monkeypatch.setattr(Complaint, "signed_by", unwanted)
    state = KeygenState(MADE, ROSTER)
    before = len(hashed)
    for holder in range(N):
        for dealer in range(N):
            state = state.add(complaint_about(state, holder, dealer))
    assert state.dropped == {("wrong-opening", holder) for holder in range(N)}
    assert len(hashed) == before


def complaint_about(state: KeygenState, holder: int, dealer: int) -> Complaint:
    """What somebody who has no key can make up."""
    return Complaint(
        session=MADE.digest,
        roster=state.roster_name,
        holder=holder,
        dealer=dealer,
        opening=bytes([holder + 1, dealer + 1]) * 16,
        signature=bytes(96),
    )


def test_a_complaint_is_signed_by_its_holder() -> None:
    forged = complaint(4, 11).model_copy(update={"signature": bytes(96)})
    state = DEALT.add(forged)
    assert state.dropped == {("bad-signature", 4)} and not state.complaints


# Who is there


def test_absent_holders_get_no_share_and_lose_nobody_else_theirs() -> None:
    roster = enrol(MADE, [each.hello() for each in PARTY[4:]])
    state = reduce(KeygenState(MADE, roster), [each.deal(roster) for each in PARTY])
    assert state.outcome is not None and len(state.outcome.dealers) == N
    with pytest.raises(KeyMaterialError):
        PARTY[0].secret(state)
    assert PARTY[0].complaints(state) == ()
    secrets = {i: PARTY[i].secret(state) for i in range(4, N)}
    assert verify_bls(state.outcome.group_key, b"m", sign_with(state.outcome, T, secrets))


def test_a_roster_needs_a_quorum_of_sound_hellos() -> None:
    hellos = [each.hello() for each in PARTY]
    bad = [
        hellos[0].model_copy(update={"signature": bytes(96)}),
        hellos[1].model_copy(update={"keys": hellos[1].keys[:-1]}).sign(KEYS[1]),
        hellos[2].model_copy(update={"session": bytes(32)}).sign(KEYS[2]),
        hellos[3].model_copy(update={"holder": 4}).sign(KEYS[3]),
        hellos[4].model_copy(update={"holder": 44}).sign(KEYS[4]),
        hellos[5],
        hellos[5].model_copy(update={"keys": hellos[6].keys}).sign(KEYS[5]),  # says two things
    ]
    assert [hello.holder for hello in enrol(MADE, [*bad, *hellos[7:], *hellos[7:]])] == list(
        range(7, N)
    )
    with pytest.raises(KeyMaterialError, match="13 holders are there"):
        enrol(MADE, [*bad, *hellos[8:]])


@pytest.mark.parametrize(
    "roster", [ROSTER[::-1], ROSTER + ROSTER[:1], ROSTER[:3], (*ROSTER[:-1], ROSTER[0]), ()]
)
def test_what_is_no_roster_is_refused(roster: tuple[Hello, ...]) -> None:
    with pytest.raises(KeyMaterialError):
        KeygenState(MADE, roster)


def test_a_key_of_small_order_hurts_only_who_sent_it() -> None:
    low = PARTY[2].hello().model_copy(update={"keys": (bytes(32),) * N}).sign(KEYS[2])
    roster = enrol(MADE, [low, *(each.hello() for i, each in enumerate(PARTY) if i != 2)])
    state = reduce(KeygenState(MADE, roster), [each.deal(roster) for each in PARTY])
    assert state.faults == {} and state.outcome is not None
    assert all(each.complaints(state) == () for each in PARTY)
    said = Complaint(
        session=MADE.digest, roster=state.roster_name, holder=2, dealer=0, opening=b"x" * 32
    )
    state = state.add(said.sign(KEYS[2]))
    assert state.faults == {} and ("wrong-opening", 2) in state.dropped


# Sessions


def test_nothing_passes_from_one_session_to_another() -> None:
    for other in (
        session(attempt=1),
        session(epoch=1),
        session(ledger_id=b"M" * 32),
        session(threshold=15),
    ):
        party = insiders(other)
        roster = enrol(other, [each.hello() for each in party])
        state = reduce(
            KeygenState(other, roster),
            [*DEALINGS, complaint(4, 11), PARTY[0].confirm(DEALT)],
        )
        assert {kind for kind, _ in state.dropped} == {"other-session"}
        assert not (state.dealings or state.complaints or state.confirmations)
        assert party[0].deal(roster).commitments != DEALINGS[0].commitments
        with pytest.raises(KeyMaterialError):
            enrol(other, ROSTER)


@pytest.mark.parametrize(
    "changed",
    [
        {"threshold": 0},
        {"threshold": 22},
        {"holders": MADE.holders[:-1]},
        {"dealers": MADE.dealers[:-1] + MADE.dealers[:1]},
        {"holders": MADE.dealers[::-1]},
        {"previous": Previous(group_key=KEYS[0].public, shares=MADE.holders, threshold=T)},
    ],
)
def test_a_session_that_makes_no_sense_is_refused(changed: dict[str, Any]) -> None:
    bad = MADE.model_copy(update=changed)
    with pytest.raises(KeyMaterialError):
        bad.check()
    with pytest.raises(KeyMaterialError):
        KeygenState(bad, ROSTER)


def test_a_stranger_is_no_insider() -> None:
    with pytest.raises(KeyMaterialError, match="no party's"):
        Insider(MADE, OTHERS[0], seed(0))
    with pytest.raises(KeyMaterialError, match="randomness"):
        Insider(MADE, KEYS[0], b"short")


# Order


def test_order_and_repetition_change_nothing() -> None:
    messages: list[Signed] = [
        *(d for i, d in enumerate(DEALINGS) if i not in (2, 5)),
        swapped_boxes(2, 9, 10),
        DEALINGS[5],
        other_polynomial(5, 1),
        swapped_boxes(5, 0),  # a third dealing
        complaint(9, 2),
        complaint(10, 2),
        complaint(4, 11),
    ]
    state = reduce(KeygenState(MADE, ROSTER), messages)
    messages += [each.confirm(state) for i, each in enumerate(PARTY) if i not in (2, 5)]
    lie = Confirmation(session=MADE.digest, holder=5, outcome=bytes(32)).sign(KEYS[5])
    messages += [lie, lie.model_copy(update={"outcome": b"x" * 32}).sign(KEYS[5])]
    expected = reduce(KeygenState(MADE, ROSTER), messages)
    assert expected.certificate is not None and list(expected.faults) == [2, 5]
    draw = random.Random(3)
    for _ in range(4):
        shuffled = messages + draw.choices(messages, k=10)
        draw.shuffle(shuffled)
        found = reduce(KeygenState(MADE, ROSTER), shuffled)
        assert found == expected
        assert found.outcome == expected.outcome and found.certificate == expected.certificate


# Handing a sharing on


def resharing(
    old: Outcome, old_threshold: int, keys: Sequence[BlsKey], successors: Sequence[BlsKey], t: int
) -> Session:
    return Session(
        ledger_id=LEDGER,
        epoch=1,
        dealers=tuple(key.public for key in keys),
        holders=tuple(key.public for key in successors),
        threshold=t,
        previous=Previous(group_key=old.group_key, shares=old.shares, threshold=old_threshold),
    ).check()


def dealt_outcome(n: int, t: int) -> tuple[Outcome, tuple[BlsKey, ...]]:
    dealing = deal(b"r" * 32, n, t)
    zero = bytes(32)
    return (
        Outcome(
            session=zero, roster=zero, dealers=(0,), dealings=(zero,),
            group_key=dealing.group_key, shares=dealing.shares,
        ),
        dealing.secrets,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("old_n", "old_t", "n", "t", "absent"),
    [(21, 14, 21, 14, 7), (7, 5, 4, 3, 2), (4, 3, 7, 5, 1), (4, 3, 4, 3, 0), (1, 1, 4, 3, 0)],
)
def test_the_group_key_stays_when_shares_are_handed_on(
    old_n: int, old_t: int, n: int, t: int, absent: int
) -> None:
    old, secrets = dealt_outcome(old_n, old_t)
    made = resharing(old, old_t, KEYS[:old_n], OTHERS[:n], t)
    dealers = [Insider(made, KEYS[i], seed(i), secrets[i]) for i in range(absent, old_n)]
    holders = [Insider(made, OTHERS[i], seed(50 + i)) for i in range(n)]
    roster = enrol(made, [each.hello() for each in holders])
    state = reduce(KeygenState(made, roster), [each.deal(roster) for each in dealers])
    assert all(each.complaints(state) == () for each in holders)
    assert state.outcome is not None
    assert state.outcome.group_key == old.group_key
    assert shares_sound(old.group_key, state.outcome.shares, t)
    assert not set(state.outcome.shares) & set(old.shares)
    mine = {i: each.secret(state) for i, each in enumerate(holders)}
    signature = sign_with(state.outcome, t, mine)
    assert signature == sign_with(old, old_t, dict(enumerate(secrets)))
    state = reduce(state, [each.confirm(state) for each in holders])
    assert state.certificate is not None and state.certificate.holds(made)
    # Old and new shares do not mix.
    if t > 1 and old_t > 1:
        mixed = {i: mine[i].sign(b"m") for i in range(t - 1)}
        mixed[t - 1] = secrets[min(t - 1, old_n - 1)].sign(b"m")
        assert not verify_bls(old.group_key, b"m", combine_shares(mixed))


def test_who_hands_on_something_else_is_left_out() -> None:
    old, secrets = dealt_outcome(4, 3)
    made = resharing(old, 3, KEYS[:4], OTHERS[:4], 3)
    dealers = [Insider(made, KEYS[i], seed(i), secrets[i]) for i in range(4)]
    holders = [Insider(made, OTHERS[i], seed(50 + i)) for i in range(4)]
    roster = enrol(made, [each.hello() for each in holders])
    dealings = [each.deal(roster) for each in dealers]
    lie = dealings[1].model_copy(
        update={"commitments": (OTHERS[0].public, *dealings[1].commitments[1:])}
    )
    state = reduce(KeygenState(made, roster), [dealings[0], lie.sign(KEYS[1]), *dealings[2:]])
    assert state.faults == {1: "handed on another value than its share"}
    assert state.outcome is not None and state.outcome.group_key == old.group_key
    assert shares_sound(old.group_key, state.outcome.shares, 3)
    # One more missing, and too few are left.
    assert reduce(KeygenState(made, roster), [dealings[0], lie, *dealings[3:]]).outcome is None


def test_a_dealer_without_its_share_hands_nothing_on() -> None:
    old, secrets = dealt_outcome(4, 3)
    made = resharing(old, 3, KEYS[:4], OTHERS[:4], 3)
    roster = enrol(made, [Insider(made, OTHERS[i], seed(50 + i)).hello() for i in range(4)])
    for wrong in (None, secrets[1]):
        with pytest.raises(KeyMaterialError, match="has not the share"):
            Insider(made, KEYS[0], seed(0), wrong).deal(roster)


def test_who_deals_and_holds_does_both() -> None:
    old, secrets = dealt_outcome(4, 3)
    made = resharing(old, 3, KEYS[:4], [*KEYS[2:4], *OTHERS[:2]], 3)
    both = Insider(made, KEYS[2], seed(2), secrets[2])
    assert (both.dealer, both.holder) == (2, 0)
    assert both.hello().holder == 0


@pytest.mark.parametrize("kind", [Hello, DealtShares, Complaint, Confirmation, Outcome, Session])
def test_hostile_bytes_are_refused(kind: type[Any]) -> None:
    for data in (b"", b"\xa0", b"\xff" * 40, b"\x9f" * 100, ROSTER[0].canonical()[:-1]):
        with pytest.raises(EncodingError):
            kind.from_canonical(data)


# Any schedule, with one traitor of four


class Schedule(RuleBasedStateMachine):
    """Four holders, of whom the last lies; every message reaches anybody, any time, any number of
    times. Honest holders confirm what they see, once."""

    made = session(4, 3)
    party = insiders(made)
    roster = enrol(made, [each.hello() for each in party])
    honest = range(3)

    @initialize()
    def begin(self) -> None:
        traitor = self.party[3]
        twin = Insider(self.made, KEYS[3], b"another polynomial" * 2).deal(self.roster)
        real = traitor.deal(self.roster)
        bad = real.model_copy(update={"boxes": (twin.boxes[0], *real.boxes[1:])}).sign(KEYS[3])
        self.pool: list[Signed] = [self.party[i].deal(self.roster) for i in self.honest]
        self.pool += [real, bad]
        blank = KeygenState(self.made, self.roster)
        for dealer in self.honest:  # false complaints
            own = traitor.complaints(
                _with_broken_box(blank, self.party[dealer].deal(self.roster), KEYS[dealer], 3)
            )
            self.pool += own
        self.states = dict.fromkeys(self.honest, blank)
        self.confirmed: dict[int, tuple[Confirmation, BlsKey]] = {}

    @rule(who=st.sampled_from(range(3)), which=st.integers(0, 40))
    def deliver(self, who: int, which: int) -> None:
        self.states[who] = self.states[who].add(self.pool[which % len(self.pool)])

    @rule(who=st.sampled_from(range(3)), draw=st.randoms(), skipped=st.integers(0, 4))
    def deliver_most(self, who: int, draw: random.Random, skipped: int) -> None:
        chosen = draw.sample(self.pool, len(self.pool))[skipped:]
        self.states[who] = reduce(self.states[who], chosen)

    @rule(who=st.sampled_from(range(3)))
    def complain(self, who: int) -> None:
        self._say(self.party[who].complaints(self.states[who]))

    @rule(who=st.sampled_from(range(3)))
    def confirm(self, who: int) -> None:
        if who in self.confirmed:
            return
        try:
            said = self.party[who].confirm(self.states[who])
        except KeyMaterialError:
            return
        self.confirmed[who] = said, self.party[who].secret(self.states[who])
        traitors = Confirmation(session=said.session, holder=3, outcome=said.outcome)
        self._say([said, traitors.sign(KEYS[3])])

    def _say(self, messages: Iterable[Signed]) -> None:
        self.pool += [message for message in messages if message not in self.pool]

    @invariant()
    def nobody_honest_is_blamed(self) -> None:
        for state in getattr(self, "states", {}).values():
            blamed = {d for d, why in state.faults.items() if why != "dealt nothing"}
            assert blamed <= {3}

    @invariant()
    def one_outcome_at_most_is_certified(self) -> None:
        certified = {
            state.certificate.outcome
            for state in getattr(self, "states", {}).values()
            if state.certificate is not None
        }
        assert len(certified) <= 1
        for outcome in certified:
            assert shares_sound(outcome.group_key, outcome.shares, 3)
            held = {
                who: secret
                for who, (said, secret) in self.confirmed.items()
                if said.outcome == outcome.digest
            }
            assert len(held) >= 2
            assert all(secret.public == outcome.shares[who] for who, secret in held.items())


def _with_broken_box(
    state: KeygenState, dealing: DealtShares, key: BlsKey, holder: int
) -> KeygenState:
    """A state in which ``holder`` has something to complain about."""
    boxes = list(dealing.boxes)
    boxes[holder] = bytes(80)
    return state.add(dealing.model_copy(update={"boxes": tuple(boxes)}).sign(key))


TestSchedule = Schedule.TestCase
TestSchedule.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
