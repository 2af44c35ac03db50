"""Evidence about votes: what convicts a seat, once, and why nobody else can be convicted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ledger_kinds as t
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_bench import META
from ledger_kit import (
    DAI,
    NODE,
    OTHER,
    PROOF_CID,
    SEAT_ACCOUNTS,
    SEAT_KEYS,
    STRANGER,
    attest,
    bound,
    make_spec,
    make_vote,
    opened,
    subject_of,
    waived,
)
from market_bench import Market
from test_evidence import stake_seats

from daifi_flows.cnft import Decision, Subject, TaskSpec, Vote, VoteChoice
from daifi_flows.dispute import DisputeFinding
from daifi_flows.encoding import cid_of, keccak256
from daifi_flows.keys import Account
from daifi_flows.ledger import TaskState

DAY = 86_400_000
ACCEPT, REJECT, ABSTAIN = VoteChoice.ACCEPT, VoteChoice.REJECT, VoteChoice.ABSTAIN
LIAR, OTHERS = 3, 5
"""The accused seat, and another."""
STAKE = 10 * DAI


def here(state: TaskState = TaskState.COMMITTED) -> tuple[Market, TaskSpec]:
    """A bench whose accused seat has a stake, and a task that reached ``state``."""
    bench = Market()
    stake_seats(bench, [LIAR])
    return bench, bench.reach(state)


def stood(spec: TaskSpec, bench: Market) -> None:
    """On to when nobody can dispute the output any more."""
    bench.now = bench.state.task(spec.task_id).challenge_until_ms


def twice(bench: Market, subject: Subject, who: Account = STRANGER, **changes: Any):
    """A seat that bound itself to accepting and to rejecting."""
    fields = {
        "subject": subject,
        "first": bound(make_vote(subject, LIAR, ACCEPT)),
        "second": bound(make_vote(subject, LIAR, REJECT)),
    }
    return bench.make(t.VoteEquivocation, who, **(fields | changes))


def copy(bench: Market, subject: Subject, who: Account = STRANGER, **changes: Any):
    """A seat that bound itself to what another seat's vote opens."""
    vote = make_vote(subject, OTHERS)
    fields = {"subject": subject, "copied": bound(vote, LIAR), "opening": opened(vote)}
    return bench.make(t.VoteCopy, who, **(fields | changes))


def accusation(
    bench: Market,
    spec: TaskSpec,
    *choices: VoteChoice,
    subject: Subject | None = None,
    who: Account = STRANGER,
    **changes: Any,
):
    """A seat that rejected what a quorum accepted."""
    subject = subject if subject is not None else subject_of(spec)
    vote = make_vote(subject, LIAR, *(choices or (ACCEPT, REJECT)))
    fields = {
        "subject": subject,
        "accusation": bound(vote),
        "opening": opened(vote),
        "attestation": attest(spec),
    }
    return bench.make(t.FalseAccusation, who, **(fields | changes))


def stake_of(bench: Market, seat: int = LIAR) -> int:
    return bench.stake_of(SEAT_ACCOUNTS[seat])


def test_a_seat_that_votes_twice_in_a_wave_loses_half() -> None:
    bench, spec = here()
    receipt = bench.run(twice(bench, subject_of(spec)))
    assert (receipt.task_id, receipt.node) == (spec.task_id, SEAT_ACCOUNTS[LIAR].address)
    assert sum(payment.amount_wei for payment in receipt.payments) == STAKE // 2
    assert stake_of(bench) == STAKE // 2 and bench.balance(STRANGER) == STAKE // 20


def test_a_seat_that_copies_a_vote_loses_half() -> None:
    bench, spec = here()
    bench.run(copy(bench, subject_of(spec)))
    assert stake_of(bench) == STAKE // 2


def test_a_false_accusation_costs_a_hundredth() -> None:
    bench, spec = here(TaskState.SETTLED)
    stood(spec, bench)
    before = bench.balance(STRANGER)
    receipt = bench.run(accusation(bench, spec))
    assert receipt.node == SEAT_ACCOUNTS[LIAR].address
    assert stake_of(bench) == STAKE - STAKE // 100
    assert bench.balance(STRANGER) - before == STAKE // 1000


def test_two_commitments_to_one_vote_are_two_votes() -> None:
    """With two salts a seat could open whichever suits it; and an honest one draws one."""
    bench, spec = here()
    subject = subject_of(spec)
    vote = make_vote(subject, LIAR)
    bench.run(twice(bench, subject, first=bound(vote), second=bound(vote, salt=META)))
    assert stake_of(bench) == STAKE // 2


def test_each_wave_is_a_place_of_its_own() -> None:
    bench, spec = here()
    subject = subject_of(spec)
    for wave, left in ((0, STAKE // 2), (7, STAKE // 4)):
        pair = {
            "first": bound(make_vote(subject, LIAR, ACCEPT, wave=wave)),
            "second": bound(make_vote(subject, LIAR, REJECT, wave=wave)),
        }
        bench.run(twice(bench, subject, **pair))
        assert stake_of(bench) == left


@pytest.mark.parametrize("kind", ["twice", "copy", "accusation"])
def test_an_offence_counts_once_whatever_shows_it(kind: str) -> None:
    bench, spec = here(TaskState.SETTLED)
    subject = subject_of(spec)
    third = bound(make_vote(subject, LIAR, ABSTAIN))
    own = bound(make_vote(subject, LIAR, REJECT))
    other = make_vote(subject, 9)
    late = make_vote(subject, LIAR, REJECT, wave=7)
    stood(spec, bench)
    first, others = {
        "twice": (
            twice(bench, subject),
            [
                lambda: twice(bench, subject, who=OTHER),
                lambda: twice(bench, subject, who=OTHER, second=third),
                lambda: twice(bench, subject, who=OTHER, first=third, second=own),
            ],
        ),
        "copy": (
            copy(bench, subject),
            [
                lambda: copy(bench, subject, who=OTHER),
                lambda: copy(
                    bench, subject, who=OTHER, copied=bound(other, LIAR), opening=opened(other)
                ),
            ],
        ),
        "accusation": (
            accusation(bench, spec),
            [
                lambda: accusation(bench, spec, who=OTHER),
                lambda: accusation(bench, spec, REJECT, who=OTHER),
                lambda: accusation(
                    bench, spec, who=OTHER, accusation=bound(late), opening=opened(late)
                ),
            ],
        ),
    }[kind]
    bench.run(first)
    left = stake_of(bench)
    for again in others:
        assert bench.refused(again()) == "duplicate"
    assert stake_of(bench) == left < STAKE


def test_the_order_of_two_votes_does_not_matter() -> None:
    bench, spec = here()
    subject = subject_of(spec)
    tx = twice(bench, subject)
    turned = twice(bench, subject, first=tx.second, second=tx.first)
    assert tx.mark() == turned.mark() and tx.intent() == turned.intent()


@pytest.mark.parametrize("make", [twice, copy])
def test_who_reports_itself_gets_no_share(make: Callable[..., Any]) -> None:
    bench, spec = here()
    before = bench.balance(SEAT_ACCOUNTS[LIAR])
    bench.run(make(bench, subject_of(spec), who=SEAT_ACCOUNTS[LIAR]))
    assert bench.balance(SEAT_ACCOUNTS[LIAR]) == before and stake_of(bench) == STAKE // 2


@pytest.mark.parametrize("make", [twice, copy])
@pytest.mark.parametrize(("late_ms", "stale"), [(DAY, False), (DAY + 1, True)])
def test_evidence_counts_until_a_time_after_the_deadline(make, late_ms: int, stale: bool) -> None:
    bench, spec = here()
    bench.now = spec.deadline_ms + late_ms
    tx = make(bench, subject_of(spec))
    if stale:
        assert bench.refused(tx) == "expired"
    else:
        bench.run(tx)


@pytest.mark.parametrize("after_deadline", [False, True])
@pytest.mark.parametrize(("late_ms", "stale"), [(DAY, False), (DAY + 1, True)])
def test_an_accusation_counts_from_when_the_output_stands(
    after_deadline: bool, late_ms: int, stale: bool
) -> None:
    """A day from the deadline, or from the last instant to dispute, whichever is later."""
    bench = Market()
    stake_seats(bench, [LIAR])
    length = 1_000 if after_deadline else 3_600_000
    spec = bench.reach(TaskState.SETTLED, make_spec(deadline_ms=bench.now + length))
    task = bench.state.task(spec.task_id)
    last = max(spec.deadline_ms, task.challenge_until_ms)
    assert (last == task.challenge_until_ms) is after_deadline
    bench.now = last + late_ms
    tx = accusation(bench, spec)
    if stale:
        assert bench.refused(tx) == "expired"
    else:
        bench.run(tx)


def test_a_seat_may_be_proven_right_before_it_is_charged() -> None:
    """The seat that rejects alone can dispute; while that can come, and goes on, it is safe."""
    bench, spec = here(TaskState.SETTLED)
    assert bench.refused(accusation(bench, spec)) == "bad-state"
    bench.run(bench.dispute_tx(spec, OTHER))
    bench.now = bench.state.task(spec.task_id).challenge_until_ms + 1
    assert bench.refused(accusation(bench, spec)) == "bad-state"
    bench.resolve(spec, DisputeFinding.UPHELD)
    assert bench.refused(accusation(bench, spec)) == "bad-state"
    assert stake_of(bench) == STAKE


def test_a_dismissed_dispute_ends_the_doubt() -> None:
    bench, spec = here(TaskState.SETTLED)
    bench.run(bench.dispute_tx(spec, OTHER))
    bench.resolve(spec, DisputeFinding.DISMISSED)
    bench.run(accusation(bench, spec))
    assert stake_of(bench) < STAKE


def test_a_seat_without_a_stake_is_written_down() -> None:
    bench = Market()
    spec = bench.reach(TaskState.COMMITTED)
    receipt = bench.run(twice(bench, subject_of(spec)))
    assert receipt.payments == () and receipt.node == SEAT_ACCOUNTS[LIAR].address
    assert bench.refused(twice(bench, subject_of(spec), who=OTHER)) == "duplicate"


def _twice(**changes: Callable[[Subject], Any]) -> Callable[[], tuple[Market, Any]]:
    """An equivocation with some fields changed."""

    def attack() -> tuple[Market, Any]:
        bench, spec = here()
        subject = subject_of(spec)
        return bench, twice(bench, subject, **{n: of(subject) for n, of in changes.items()})

    return attack


def _about(**changes: object) -> Callable[[], tuple[Market, Any]]:
    """An equivocation about another subject, which both votes name."""

    def attack() -> tuple[Market, Any]:
        bench, spec = here()
        return bench, twice(bench, subject_of(spec, **changes))

    return attack


def _copy(**changes: Callable[[Subject], Any]) -> Callable[[], tuple[Market, Any]]:
    def attack() -> tuple[Market, Any]:
        bench, spec = here()
        subject = subject_of(spec)
        return bench, copy(bench, subject, **{n: of(subject) for n, of in changes.items()})

    return attack


def _accused(
    *choices: VoteChoice, about: dict[str, object] | None = None, **changes: Callable[..., Any]
) -> Callable[[], tuple[Market, Any]]:
    """An accusation of what stood, with some fields changed."""

    def attack() -> tuple[Market, Any]:
        bench, spec = here(TaskState.SETTLED)
        stood(spec, bench)
        subject = subject_of(spec, **(about or {}))
        fields = {name: of(spec, subject) for name, of in changes.items()}
        return bench, accusation(bench, spec, *choices, subject=subject, **fields)

    return attack


def _state(state: TaskState) -> Callable[[], tuple[Market, Any]]:
    def attack() -> tuple[Market, Any]:
        bench, spec = here(state)
        return bench, accusation(bench, spec)

    return attack


def _before_it_was_given() -> tuple[Market, Any]:
    bench, spec = here(TaskState.OPEN)
    return bench, twice(bench, subject_of(spec))


def _unknown_task() -> tuple[Market, Any]:
    bench = Market()
    return bench, twice(bench, subject_of(make_spec(77)))


def _waived() -> tuple[Market, Any]:
    """Nobody checked what was accepted: a vote against it is no lie."""
    bench = Market()
    stake_seats(bench, [LIAR])
    spec = bench.reach(TaskState.COMMITTED)
    task = bench.state.task(spec.task_id)
    bench.state.apply({task.key(): task.model_copy(update={"review_ppm": 20_000})})
    bench.do(t.Settle, NODE, attestation=waived(spec), metadata=META)
    stood(spec, bench)
    return bench, accusation(bench, spec)


def _forged(vote: Vote, by: int = OTHERS):
    """A commitment in the accused seat's name under another seat's signature."""
    commit = bound(vote)
    return commit.model_copy(update={"signature": SEAT_KEYS[by].sign(commit.message())})


def _renamed(subject: Subject):
    """What another seat signed, with the accused seat's number on it."""
    return bound(make_vote(subject, OTHERS, REJECT)).model_copy(update={"seat": LIAR})


def _own(subject: Subject, *choices: VoteChoice):
    return bound(make_vote(subject, LIAR, *choices))


INNOCENT: list[tuple[str, str, Callable[[], tuple[Market, Any]]]] = [
    # Two votes
    ("the same commitment twice", "bad-field", _twice(second=lambda s: _own(s, ACCEPT))),
    (
        "votes in two waves",
        "bad-field",
        _twice(second=lambda s: bound(make_vote(s, LIAR, REJECT, wave=7))),
    ),
    (
        "votes of two seats",
        "bad-field",
        _twice(second=lambda s: bound(make_vote(s, OTHERS, REJECT))),
    ),
    (
        "a vote on something else",
        "bad-field",
        _twice(second=lambda s: _own(s.model_copy(update={"proof_cid": cid_of(b"x")}), REJECT)),
    ),
    (
        "another seat's signature",
        "bad-signature",
        _twice(second=lambda s: _forged(make_vote(s, LIAR, REJECT))),
    ),
    ("another seat's vote under its name", "bad-signature", _twice(second=_renamed)),
    ("a subject of another ledger", "bad-field", _about(ledger_id=META)),
    ("a subject of another epoch", "bad-field", _about(epoch=2)),
    ("a subject of another committee", "bad-field", _about(committee=META)),
    ("a subject of an attempt to come", "bad-state", _about(attempt=1)),
    ("a subject of a node that was not given it", "bad-state", _about(node=OTHER.address)),
    ("a task that was given to nobody", "bad-state", _before_it_was_given),
    ("a task nobody opened", "unknown", _unknown_task),
    (
        "a seat the committee does not have",
        "bad-field",
        _twice(
            first=lambda s: _own(s, ACCEPT).model_copy(update={"seat": 21}),
            second=lambda s: _own(s, REJECT).model_copy(update={"seat": 21}),
        ),
    ),
    # A copy
    (
        "its own vote",
        "bad-field",
        _copy(copied=_own, opening=lambda s: opened(make_vote(s, LIAR))),
    ),
    (
        "another commitment than the opened one",
        "bad-field",
        _copy(copied=lambda s: _own(s, REJECT)),
    ),
    (
        "the commitment under the other's signature",
        "bad-signature",
        _copy(copied=lambda s: bound(make_vote(s, OTHERS)).model_copy(update={"seat": LIAR})),
    ),
    (
        "an opening with another salt",
        "bad-field",
        _copy(opening=lambda s: opened(make_vote(s, OTHERS), META)),
    ),
    # An accusation
    ("a vote that accepts", "bad-field", _accused(ACCEPT, ACCEPT)),
    ("a vote that abstains", "bad-field", _accused(ACCEPT, ABSTAIN)),
    ("a part the output does not have", "bad-field", _accused(ACCEPT, ACCEPT, ACCEPT, REJECT)),
    (
        "another vote than it signed",
        "bad-field",
        _accused(accusation=lambda _, s: _own(s, ACCEPT)),
    ),
    (
        "a vote under another's signature",
        "bad-signature",
        _accused(accusation=lambda _, s: _forged(make_vote(s, LIAR, ACCEPT, REJECT))),
    ),
    (
        "another seat's vote, copied",
        "bad-field",
        _accused(
            accusation=lambda _, s: bound(make_vote(s, OTHERS, REJECT), LIAR),
            opening=lambda _, s: opened(make_vote(s, OTHERS, REJECT)),
        ),
    ),
    (
        "a finding that rejects",
        "bad-field",
        _accused(attestation=lambda spec, _: attest(spec, Decision.REJECTED)),
    ),
    (
        "a finding that nobody checked",
        "bad-field",
        _accused(attestation=lambda spec, _: waived(spec)),
    ),
    (
        "a finding of too few",
        "bad-signature",
        _accused(attestation=lambda spec, _: attest(spec, signers=range(13))),
    ),
    (
        "a finding about another proof",
        "bad-field",
        _accused(attestation=lambda spec, _: attest(spec, proof_cid=cid_of(b"x"))),
    ),
    ("a review of another proof", "bad-field", _accused(about={"proof_cid": cid_of(b"x")})),
    ("a review of another output", "bad-field", _accused(about={"output_cid": cid_of(b"x")})),
    ("a review of another attempt", "bad-field", _accused(about={"attempt": 1})),
    ("a review of another node", "bad-field", _accused(about={"node": OTHER.address})),
    ("a stricter review", "bad-field", _accused(about={"min_confidence_ppm": 999_999})),
    ("what is not paid yet", "bad-state", _state(TaskState.COMMITTED)),
    ("what can still be disputed", "bad-state", _state(TaskState.SETTLED)),
    ("what was accepted unseen", "bad-state", _waived),
]


@pytest.mark.parametrize(
    ("code", "attack"), [pytest.param(c, a, id=name) for name, c, a in INNOCENT]
)
def test_what_shows_no_offence_is_refused(code: str, attack) -> None:
    bench, tx = attack()
    assert bench.refused(tx) == code


_SUBJECTS = st.sampled_from([0, 1]).map(lambda n: subject_of(make_spec(n)))
_VOTES = st.builds(
    lambda subject, seat, wave, choices, salt: (
        make_vote(subject, seat, *choices, wave=wave),
        keccak256(bytes([salt])),
    ),
    subject=_SUBJECTS,
    seat=st.sampled_from([LIAR, OTHERS]),
    wave=st.sampled_from([0, 7]),
    choices=st.lists(st.sampled_from(list(VoteChoice)), min_size=1, max_size=3),
    salt=st.integers(0, 2),
)


@settings(max_examples=60, deadline=None)
@given(signed=st.lists(_VOTES, min_size=1, max_size=6), data=st.data())
def test_a_seat_that_signs_one_own_vote_a_wave_is_never_convicted(signed, data) -> None:
    """Whatever evidence is put together from what honest seats sign and reveal, of several
    reviews and waves, names no honest seat: votes are theirs, one a wave, and right or open."""
    bench = Market()
    stake_seats(bench, [LIAR, OTHERS])
    for number in (0, 1):
        spec = bench.reach(TaskState.SETTLED, make_spec(number))
    stood(spec, bench)
    honest = {
        (vote.subject, vote.seat, vote.wave): (vote, salt)
        for vote, salt in signed
        if all(finding.decision is not REJECT for finding in vote.findings)
    }
    votes = list(honest.values())
    if not votes:
        return
    pick = st.sampled_from(votes)
    (one, salt), (two, other_salt) = data.draw(pick), data.draw(pick)
    subject = subject_of(make_spec(data.draw(st.sampled_from([0, 1]))))
    commits = [bound(one, salt=salt), bound(two, salt=other_salt)]
    renumbered = commits[1].model_copy(update={"seat": data.draw(st.sampled_from([LIAR, OTHERS]))})
    opening = opened(two, other_salt)
    shown = [
        twice(bench, subject, first=commits[0], second=commits[1]),
        twice(bench, subject, first=commits[0], second=renumbered),
        copy(bench, subject, copied=commits[0], opening=opening),
        copy(bench, subject, copied=renumbered, opening=opening),
        accusation(bench, make_spec(0), subject=subject, accusation=renumbered, opening=opening),
    ]
    for tx in shown:
        assert bench.refused(tx) in ("bad-field", "bad-signature")
    assert stake_of(bench, LIAR) == stake_of(bench, OTHERS) == STAKE


def test_the_proof_of_a_settled_review_is_the_one_that_was_attested() -> None:
    """Of two content ids that buyer and node gave, only the attested one was reviewed."""
    bench, spec = here()
    bench.do(
        t.Commit,
        NODE,
        task_id=spec.task_id,
        attempt=0,
        proof_cid=cid_of(b"elsewhere"),
        header=bench.state.task(spec.task_id).proof,
    )
    bench.do(t.Settle, NODE, attestation=attest(spec), metadata=META)
    stood(spec, bench)
    elsewhere = {"proof_cid": cid_of(b"elsewhere")}
    wrong = accusation(
        bench, spec, subject=subject_of(spec, **elsewhere), attestation=attest(spec, **elsewhere)
    )
    assert bench.refused(wrong) == "bad-field"
    assert bench.state.task(spec.task_id).proof_cid == PROOF_CID
    bench.run(accusation(bench, spec))
