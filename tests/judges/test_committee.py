"""The reducer: tables of attacks, and its invariants over any order, repetition and loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daifi_flows.cnft import ChunkFinding, Decision, Subject, VoteChoice, VoteCommit, VoteReveal
from daifi_flows.encoding import cid_of, keccak256
from daifi_flows.errors import CommitteeError
from daifi_flows.judges import ReviewState, SeatKeys, check_committee
from daifi_flows.judges._committee import lower_median
from daifi_flows.keys import Account, verify_bls_aggregate

SALT = keccak256(b"salt")
ACCEPT, REJECT, ABSTAIN = VoteChoice.ACCEPT, VoteChoice.REJECT, VoteChoice.ABSTAIN
RELAXED = settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Bench:
    """A committee with its secrets, and cached messages of its seats (signing is slow)."""

    def __init__(self, seats: Any) -> None:
        self.seats = seats
        self.committee = seats.committee
        self.subject = Subject(
            ledger_id=keccak256(b"ledger"),
            committee=self.committee.digest,
            epoch=self.committee.epoch,
            task_id=keccak256(b"task"),
            attempt=0,
            node=Account.from_seed(b"node").address,
            output_cid=cid_of(b"output"),
            proof_cid=cid_of(b"proof"),
            min_confidence_ppm=990_000,
            deadline_ms=10**15,
        )
        self.start = ReviewState(self.subject, self.committee)
        self.keys: Callable[[int], SeatKeys] = lru_cache(None)(seats.keys)
        self.message = lru_cache(None)(self._message)
        self.partial = lru_cache(None)(self._partial)

    def _message(
        self, seat: int, choice: VoteChoice, ppm: int = 999_000, salt: bytes = SALT
    ) -> tuple[VoteCommit, VoteReveal]:
        keys = self.keys(seat)
        finding = ChunkFinding(chunk=0, decision=choice, confidence_ppm=ppm, reason="because")
        vote = keys.vote(self.subject, 0, [finding])
        return keys.commit(vote, salt), keys.reveal(vote, salt)

    def _partial(self, seat: int, message: bytes) -> bytes:
        return self.keys(seat).bls.sign(message)

    def run(self, votes: dict[int, tuple[VoteChoice, int]]) -> ReviewState:
        """Commits and reveals of these seats, reveals closed."""
        messages = [self.message(seat, *vote) for seat, vote in votes.items()]
        return fold(self.start, [m[0] for m in messages], [m[1] for m in messages])


def fold(
    state: ReviewState, commits: Iterable[VoteCommit], reveals: Iterable[VoteReveal]
) -> ReviewState:
    for commit in commits:
        state = state.add_commit(commit)
    state = state.close_commits()
    for reveal in reveals:
        state = state.add_reveal(reveal)
    return state.close_reveals()


@pytest.fixture(scope="module")
def bench(seats_of: Any) -> Bench:
    return Bench(seats_of(21))


@pytest.fixture(scope="module")
def small(seats_of: Any) -> Bench:
    return Bench(seats_of(4))  # f = 1, quorum 3


# Tally


@pytest.mark.parametrize(
    ("accepts", "rejects", "abstains", "ppm", "decision", "confidence"),
    [
        (21, 0, 0, 999_000, Decision.ACCEPTED, 999_000),
        (14, 7, 0, 990_000, Decision.ACCEPTED, 990_000),
        (14, 0, 0, 999_000, Decision.ACCEPTED, 999_000),
        (14, 0, 7, 999_000, Decision.ACCEPTED, 999_000),
        (13, 0, 0, 999_000, Decision.UNPROVEN, 0),
        (13, 0, 8, 999_000, Decision.UNPROVEN, 0),
        (13, 8, 0, 999_000, Decision.UNPROVEN, 0),
        (21, 0, 0, 989_999, Decision.UNPROVEN, 989_999),
        (0, 21, 0, 999_000, Decision.REJECTED, 999_000),
        (0, 14, 7, 500_000, Decision.REJECTED, 500_000),
        (7, 14, 0, 999_000, Decision.REJECTED, 999_000),
        (0, 13, 8, 999_000, Decision.UNPROVEN, 0),
        (0, 0, 21, 0, Decision.UNPROVEN, 0),
        (0, 0, 0, 0, Decision.UNPROVEN, 0),
    ],
)
def test_tally_needs_a_quorum_of_all_seats(
    bench: Bench, accepts: int, rejects: int, abstains: int, ppm: int, decision: Decision,
    confidence: int,
) -> None:  # fmt: skip
    choices = [ACCEPT] * accepts + [REJECT] * rejects + [ABSTAIN] * abstains
    tally = bench.run({seat: (choice, ppm) for seat, choice in enumerate(choices)}).tally()
    assert (tally.decision, tally.confidence_ppm) == (decision, confidence)
    assert (tally.accepts, tally.rejects, tally.abstains) == (accepts, rejects, abstains)
    assert tally.missing == 21 - accepts - rejects - abstains


@pytest.mark.parametrize(
    ("values", "median"), [([5], 5), ([9, 1], 1), ([3, 1, 2], 2), ([4, 1, 3, 2], 2)]
)
def test_lower_median(values: list[int], median: int) -> None:
    assert lower_median(values) == median


# Attacks


def _kinds(state: ReviewState) -> set[tuple[str, int | None]]:
    return {(item.kind, item.seat) for item in state.dropped()}


def test_unknown_seats_are_dropped(small: Bench) -> None:
    commit, reveal = small.message(0, ACCEPT)
    state = small.start.add_commit(commit.model_copy(update={"seat": 4}))
    state = state.add_commit(commit.model_copy(update={"seat": 2**40})).close_commits()
    vote = reveal.vote.model_copy(update={"seat": 9})
    state = state.add_reveal(reveal.model_copy(update={"vote": vote})).close_reveals()
    state = state.add_partial(4, bytes(96)).add_partial(-1, bytes(96))
    assert not state.commits and not state.reveals and not state.partials
    assert _kinds(state) == {("unknown-seat", None)}


@pytest.mark.parametrize("field", ["signature", "commitment"])
def test_a_commit_with_a_bad_signature_is_dropped(small: Bench, field: str) -> None:
    commit, _ = small.message(1, ACCEPT)
    broken = commit.model_copy(update={field: bytes(len(getattr(commit, field)))})
    state = small.start.add_commit(broken)
    assert not state.commits
    assert _kinds(state) == {("bad-signature", 1)}


def test_a_commit_signed_by_another_seat_is_dropped(small: Bench) -> None:
    commit, _ = small.message(1, ACCEPT)
    state = small.start.add_commit(commit.model_copy(update={"seat": 2}))
    assert not state.commits


@pytest.mark.parametrize("update", [{"subject": bytes(32)}])
def test_messages_about_another_task_or_proof_are_dropped(
    small: Bench, update: dict[str, Any]
) -> None:
    commit, reveal = small.message(0, ACCEPT)
    state = small.start.add_commit(commit.model_copy(update=update))
    assert not state.commits and _kinds(state) == {("wrong-task", 0)}
    vote = reveal.vote.model_copy(update=update)
    keys = small.keys(0)  # a seat may even commit to a vote on another task
    crossed = keys.sign_commitment(reveal.vote, vote.commitment(SALT))
    state = fold(small.start, [crossed], [VoteReveal(vote=vote, salt=SALT)])
    assert not state.reveals and _kinds(state) == {("wrong-task", 0)}


def test_a_reveal_must_open_its_seats_own_commit(small: Bench) -> None:
    commit, reveal = small.message(0, ACCEPT)
    other = reveal.vote.findings[0].model_copy(update={"decision": REJECT})
    changed = reveal.model_copy(
        update={"vote": reveal.vote.model_copy(update={"findings": (other,)})}
    )
    salted = reveal.model_copy(update={"salt": bytes(32)})
    state = fold(small.start, [commit], [changed, salted, small.message(1, ACCEPT)[1]])
    assert not state.reveals
    assert _kinds(state) == {("unmatched-reveal", 0), ("unmatched-reveal", 1)}


def test_a_copied_commit_cannot_be_opened_and_is_evidence(small: Bench) -> None:
    commit, reveal = small.message(0, ACCEPT)
    copied = small.keys(1).sign_commitment(reveal.vote, commit.commitment)
    words = reveal.model_copy(update={"vote": reveal.vote.model_copy(update={"seat": 1})})
    for order in ([commit, copied], [copied, commit]):
        state = fold(small.start, order, [reveal, words])
        assert set(state.reveals) == {0}
        (proof,) = state.evidence()
        assert (proof.kind, proof.seat) == ("copy", 1)
        assert proof.opening == reveal


def test_equivocation_costs_the_vote_and_is_evidence(small: Bench) -> None:
    one, opened = small.message(2, ACCEPT)
    two, reopened = small.message(2, REJECT)
    for order in ([one, two], [two, one, two]):
        state = fold(small.start, order, [opened, reopened])
        assert not state.reveals
        (proof,) = state.evidence()
        assert (proof.kind, proof.seat) == ("equivocation", 2)
        assert {item.commitment for item in proof.commits} == {one.commitment, two.commitment}


def test_messages_that_come_in_another_phase_do_not_count(small: Bench) -> None:
    (commit, reveal), (late, late_reveal) = small.message(0, ACCEPT), small.message(1, ACCEPT)
    state = small.start.add_reveal(reveal).add_partial(0, bytes(96)).add_commit(commit)
    state = state.close_commits().add_commit(late).add_reveal(late_reveal).close_reveals()
    state = state.add_reveal(reveal)
    assert not state.reveals and not state.partials and set(state.commits) == {0}
    assert _kinds(state) == {
        ("early-reveal", 0), ("early-partial", 0), ("late-commit", 1), ("unmatched-reveal", 1),
        ("late-reveal", 0),
    }  # fmt: skip
    assert state.evidence() == ()


def test_a_late_second_commit_is_evidence_but_changes_no_vote(small: Bench) -> None:
    one, opened = small.message(2, ACCEPT)
    state = small.start.add_commit(one).close_commits().add_commit(small.message(2, REJECT)[0])
    state = state.add_reveal(opened).close_reveals()
    assert set(state.reveals) == {2}
    assert [item.kind for item in state.evidence()] == ["equivocation"]


def test_the_outcome_is_not_known_before_the_reveals_are_closed(small: Bench) -> None:
    with pytest.raises(CommitteeError):
        small.start.close_reveals()
    with pytest.raises(CommitteeError):
        small.start.close_commits().message()


# Signatures


def test_bad_partials_are_dropped_without_the_rest(bench: Bench) -> None:
    state = bench.run(dict.fromkeys(range(21), (ACCEPT, 999000)))
    message = state.message()
    wrong = bench.subject.message(Decision.REJECTED, 1_000_000)
    rubbish = {0: b"", 1: bytes(96), 2: b"\xc0" + bytes(95), 3: bench.partial(3, wrong),
               4: bench.partial(5, message), 5: bytes(200), 6: bytes(range(96))}  # fmt: skip
    for seat in range(7, 20):
        state = state.add_partial(seat, bench.partial(seat, message))
    for seat, partial in rubbish.items():
        state = state.add_partial(seat, partial)
    state, attestation = state.attested()
    assert attestation is None  # 13 good ones
    state, attestation = state.add_partial(20, bench.partial(20, message)).attested()
    assert attestation is not None
    assert attestation.message() == message
    signers = bench.committee.signers(attestation.signers)
    assert [seat.index for seat in signers] == list(range(7, 21))
    assert verify_bls_aggregate([s.public for s in signers], message, attestation.signature)
    assert {seat for kind, seat in _kinds(state) if kind == "bad-partial"} == set(rubbish)


@pytest.mark.parametrize("good_first", [True, False])
def test_a_seat_that_sends_two_partials_is_counted_by_the_right_one(
    small: Bench, good_first: bool
) -> None:
    state = small.run(dict.fromkeys(range(4), (ACCEPT, 999000)))
    good, bad = small.partial(0, state.message()), small.partial(0, b"something else")
    order = [good, bad, good] if good_first else [bad, bad, good]
    for partial in order:
        state = state.add_partial(0, partial)
    assert state.partials == {0: good}
    assert ("bad-partial", 0) in _kinds(state)


# Committees


def test_a_committee_with_an_unproven_or_repeated_key_is_refused(small: Bench) -> None:
    seats = small.committee.seats
    for broken in (
        (*seats[:1], seats[1].model_copy(update={"possession": seats[0].possession})),
        (seats[0], seats[0].model_copy(update={"index": 1})),
        seats[1:],
        (),
    ):
        with pytest.raises(CommitteeError):
            check_committee(small.committee.model_copy(update={"seats": broken}))
    check_committee(small.committee)


# Invariants

CHOICES = st.sampled_from([ACCEPT, REJECT, ABSTAIN])
ONE_VOTE = st.tuples(CHOICES, st.sampled_from([0, 500_000, 989_999, 990_000, 1_000_000]))


@RELAXED
@given(data=st.data())
def test_order_repetition_and_interleaving_change_nothing(small: Bench, data: Any) -> None:
    votes = data.draw(st.dictionaries(st.integers(0, 3), st.lists(ONE_VOTE, max_size=3)))
    messages = [small.message(s, *vote) for s, many in votes.items() for vote in many]
    shuffled = st.permutations(messages + messages)
    states = []
    for _ in range(2):
        commits = [m[0] for m in data.draw(shuffled)]
        reveals = [m[1] for m in data.draw(shuffled)]
        state = fold(small.start, commits, reveals)
        partials = data.draw(st.permutations([(s, bad) for s in range(4) for bad in (0, 1)] * 2))
        for seat, bad in partials:
            signed = b"another message" if bad and seat == 3 else state.message()
            state = state.add_partial(seat, small.partial(seat, signed))
        states.append(state)
    one, other = states
    assert (one.commits, one.reveals, one.dropped(), one.evidence()) == (
        other.commits, other.reveals, other.dropped(), other.evidence(),
    )  # fmt: skip
    assert one.attested()[1] == other.attested()[1] is not None


@RELAXED
@given(data=st.data())
def test_six_byzantine_seats_cannot_turn_an_honest_acceptance(bench: Bench, data: Any) -> None:
    traitors = data.draw(st.sets(st.integers(0, 20), max_size=6))
    honest = {
        seat: (ACCEPT, data.draw(st.sampled_from([990_000, 995_000, 999_000])))
        for seat in set(range(21)) - traitors
    }
    commits = [bench.message(seat, *vote)[0] for seat, vote in honest.items()]
    reveals = [bench.message(seat, *vote)[1] for seat, vote in honest.items()]
    for seat in traitors:
        for vote in data.draw(st.lists(ONE_VOTE, max_size=2)):
            commits.append(bench.message(seat, *vote)[0])
            reveals.append(bench.message(seat, *vote)[1])
    state = fold(
        bench.start,
        data.draw(st.permutations(commits)),
        data.draw(st.permutations(reveals)),
    )
    tally = state.tally()
    assert tally.decision is Decision.ACCEPTED
    said = [ppm for _, ppm in honest.values()]
    assert min(said) <= tally.confidence_ppm <= max(said)
    other = bench.subject.message(data.draw(st.sampled_from(Decision)), 123)
    for seat in range(21):
        signs = data.draw(st.sampled_from([other, b"rubbish"])) if seat in traitors else None
        state = state.add_partial(seat, bench.partial(seat, signs or state.message()))
    state, attestation = state.attested()
    assert attestation is not None
    assert attestation.decision is Decision.ACCEPTED
    assert attestation.signers == sum(1 << seat for seat in honest)


@RELAXED
@given(data=st.data())
def test_lost_messages_never_reject_honest_work(bench: Bench, data: Any) -> None:
    traitors = data.draw(st.sets(st.integers(0, 20), max_size=6))
    votes = {
        seat: (REJECT, 1_000_000) if seat in traitors else (ACCEPT, 999_000) for seat in range(21)
    }
    lost = data.draw(st.sets(st.integers(0, 20)))
    tally = bench.run({seat: vote for seat, vote in votes.items() if seat not in lost}).tally()
    heard = len(set(range(21)) - traitors - lost)
    expected = Decision.ACCEPTED if heard >= 14 else Decision.UNPROVEN
    assert tally.decision is expected


@RELAXED
@given(data=st.data())
def test_a_lying_aggregator_cannot_get_two_attestations(bench: Bench, data: Any) -> None:
    """Honest seats sign one outcome each; six traitors sign everything."""
    traitors = set(range(6))
    outcomes = [
        bench.run(dict.fromkeys(range(21), (ACCEPT, 999000))),
        bench.run(dict.fromkeys(range(13), (ACCEPT, 999000))),
    ]
    believes = {seat: data.draw(st.integers(0, 1)) for seat in range(6, 21)}
    found = []
    for number, state in enumerate(outcomes):
        signed = state
        for seat in range(21):
            if seat in traitors or believes[seat] == number:
                signed = signed.add_partial(seat, bench.partial(seat, state.message()))
        found.append(signed.attested()[1])
    assert None in found
