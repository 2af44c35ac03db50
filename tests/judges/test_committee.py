"""The reducer: tables of attacks, and its invariants over any order, repetition and loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daifi_flows.cnft import (
    FULL_WAVE,
    Basis,
    ChunkFinding,
    Committee,
    Decision,
    Subject,
    Vote,
    VoteChoice,
    VoteCommit,
    VoteReveal,
)
from daifi_flows.encoding import cid_of, keccak256
from daifi_flows.errors import CommitteeError, EncodingError
from daifi_flows.judges import Phase, ReviewState, SeatKeys, check_committee
from daifi_flows.judges._batch import all_signed
from daifi_flows.judges._record import Look, Record, look_of
from daifi_flows.judges._replay import replayed
from daifi_flows.judges._tally import lower_median, tally_of
from daifi_flows.keys import Account, verify_bls_aggregate

SALT = keccak256(b"salt")
ACCEPT, REJECT, ABSTAIN = VoteChoice.ACCEPT, VoteChoice.REJECT, VoteChoice.ABSTAIN
RELAXED = settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

Votes = Mapping[int, tuple[VoteChoice, int]]


class Bench:
    """A committee with its secrets, and cached messages of its seats (signing is slow)."""

    def __init__(self, seats: Any, **subject: Any) -> None:
        self.seats = seats
        self.committee: Committee = seats.committee
        self.subject = Subject(
            ledger_id=keccak256(b"ledger"),
            committee=self.committee.digest,
            epoch=self.committee.epoch,
            task_id=keccak256(b"task"),
            attempt=0,
            output_cid=cid_of(b"output"),
            proof_cid=cid_of(b"proof"),
            min_confidence_ppm=990_000,
            deadline_ms=10**15,
            **{"node": Account.from_seed(b"node").address} | subject,
        )
        self.keys: Callable[[int], SeatKeys] = lru_cache(None)(seats.keys)
        self.message = lru_cache(None)(self._message)
        self.partial = lru_cache(None)(self._partial)
        self.share = lru_cache(None)(self._share)
        self.dark = ReviewState.start(self.subject, self.committee)
        self.start = self.lit(self.dark, range(self.committee.quorum))
        self.order = self.start.first_asked[0] if self.start.drawn else ()

    def lit(self, state: ReviewState, seats: Iterable[int]) -> ReviewState:
        for seat in seats:
            state = state.add_share(seat, self.share(seat))
        return state

    def _share(self, seat: int) -> bytes:
        share = self.keys(seat).share
        assert share is not None
        return share.sign(self.subject.beacon_message())

    def _message(
        self, seat: int, choice: VoteChoice, ppm: int = 999_000, salt: bytes = SALT, wave: int = 0
    ) -> tuple[VoteCommit, VoteReveal]:
        keys = self.keys(seat)
        findings = [
            ChunkFinding(chunk=chunk, decision=choice, confidence_ppm=ppm, reason="because")
            for chunk in range(self.subject.chunks)
        ]
        vote = keys.vote(self.subject, wave, findings)
        return keys.commit(vote, salt), keys.reveal(vote, salt)

    def _partial(self, seat: int, message: bytes) -> bytes:
        return self.keys(seat).bls.sign(message)

    def first(self, votes: Votes) -> ReviewState:
        """The first look, closed."""
        return fold(self.start, [self.message(seat, *vote) for seat, vote in votes.items()])

    def full(self, votes: Votes, first: Votes | None = None) -> ReviewState:
        """Both looks, closed: the seats in ``first`` (or the f+1 that are asked) have looked."""
        before = {seat: votes[seat] for seat in self.order if seat in votes}
        state = self.first(before if first is None else first)
        if state.phase is Phase.SIGN:
            return state
        said = {s: v for s, v in votes.items() if s not in (before if first is None else first)}
        return fold(state, [self.message(s, *v, SALT, FULL_WAVE) for s, v in said.items()])


def fold(state: ReviewState, messages: Sequence[tuple[VoteCommit, VoteReveal]]) -> ReviewState:
    state = state.add_commits([commit for commit, _ in messages]).close_commits()
    for _, reveal in messages:
        state = state.add_reveal(reveal)
    return state.close_reveals()


@pytest.fixture(scope="module")
def bench(seats_of: Any) -> Bench:
    return Bench(seats_of(21))


@pytest.fixture(scope="module")
def small(seats_of: Any) -> Bench:
    return Bench(seats_of(4))  # f = 1, quorum 3, two look first


# Tally


def choices(accepts: int, rejects: int, abstains: int, ppm: int = 999_000) -> list[Any]:
    named = [ACCEPT] * accepts + [REJECT] * rejects + [ABSTAIN] * abstains
    return [(choice, ppm) for choice in named]


@pytest.mark.parametrize(
    ("accepts", "rejects", "abstains", "ppm", "decision", "confidence"),
    [
        (7, 0, 0, 999_000, Decision.ACCEPTED, 999_000),
        (7, 0, 0, 990_000, Decision.ACCEPTED, 990_000),
        (7, 0, 3, 999_000, Decision.ACCEPTED, 999_000),
        (9, 0, 0, 999_000, Decision.ACCEPTED, 999_000),
        (6, 0, 1, 999_000, None, 0),
        (6, 0, 0, 999_000, None, 0),
        (6, 1, 0, 999_000, None, 0),
        (7, 1, 0, 999_000, None, 0),
        (7, 0, 0, 989_999, None, 0),
        (0, 7, 0, 999_000, None, 0),
        (0, 0, 7, 999_000, None, 0),
        (0, 0, 0, 999_000, None, 0),
    ],
)
def test_the_first_look_accepts_with_seven_and_no_reject(
    bench: Bench, accepts: int, rejects: int, abstains: int, ppm: int, decision: Decision | None,
    confidence: int,
) -> None:  # fmt: skip
    state = bench.first(dict(enumerate(choices(accepts, rejects, abstains, ppm))))
    if decision is None:
        assert state.phase is Phase.FULL_COMMIT and state.disputed == (0,)
        asked = state.full_asked
        assert set(asked) == set(range(accepts + rejects + abstains, 21))
    else:
        tally = state.tally()
        assert (tally.decision, tally.confidence_ppm) == (decision, confidence)


@pytest.mark.parametrize(
    ("accepts", "rejects", "abstains", "ppm", "decision", "confidence"),
    [
        (14, 7, 0, 990_000, Decision.ACCEPTED, 990_000),
        (14, 1, 6, 999_000, Decision.ACCEPTED, 999_000),
        (13, 8, 0, 999_000, Decision.UNPROVEN, 0),
        (13, 1, 7, 999_000, Decision.UNPROVEN, 0),
        (0, 21, 0, 999_000, Decision.REJECTED, 999_000),
        (0, 14, 7, 500_000, Decision.REJECTED, 500_000),
        (7, 14, 0, 999_000, Decision.REJECTED, 999_000),
        (0, 13, 8, 999_000, Decision.UNPROVEN, 0),
        (8, 13, 0, 999_000, Decision.UNPROVEN, 0),
        (0, 14, 0, 999_000, Decision.REJECTED, 999_000),
        (0, 13, 0, 999_000, Decision.UNPROVEN, 0),
        (0, 0, 21, 0, Decision.UNPROVEN, 0),
    ],
)
def test_all_seats_decide_by_fourteen_of_all_not_of_those_that_vote(
    bench: Bench, accepts: int, rejects: int, abstains: int, ppm: int, decision: Decision,
    confidence: int,
) -> None:  # fmt: skip
    votes = dict(enumerate(reversed(choices(accepts, rejects, abstains, ppm))))
    state = bench.full(votes, {seat: votes[seat] for seat in range(min(7, len(votes)))})
    tally = state.tally()
    assert (tally.decision, tally.confidence_ppm) == (decision, confidence)
    assert (tally.chunks[0].accepts, tally.chunks[0].rejects) == (accepts, rejects)


@pytest.mark.parametrize(
    ("values", "weights", "median"),
    [
        ([5], [None], 5),
        ([9, 1], [None, None], 1),
        ([3, 1, 2], [None] * 3, 2),
        ([4, 1, 3, 2], [None] * 4, 2),
        ([4, 1, 3, 2], [10**18] * 4, 2),
        ([1, 2, 3], [5, 1, 1], 1),
        ([1, 2, 3], [1, 1, 5], 3),
        ([1, 2, 3], [1, 1, 2], 2),
        ([1, 2], [0, 0], 1),
    ],
)
def test_lower_median_by_stake(
    small: Bench, values: list[int], weights: list[int | None], median: int
) -> None:
    seats = [
        seat.model_copy(update={"weight": weight})
        for seat, weight in zip(small.committee.seats, weights, strict=False)
    ]
    committee = small.committee.model_copy(update={"seats": tuple(seats)})
    assert lower_median(dict(enumerate(values)), committee) == median


def _finding(choice: VoteChoice, chunk: int, ppm: int = 995_000) -> ChunkFinding:
    return ChunkFinding(chunk=chunk, decision=choice, confidence_ppm=ppm)


def test_an_output_is_what_its_worst_chunk_is(small: Bench) -> None:
    subject = small.subject.model_copy(update={"chunks": 3})

    def tally(second: VoteChoice, third: VoteChoice, ppm: int = 995_000) -> Any:
        said = (ACCEPT, second, third)
        findings = {
            chunk: {seat: _finding(choice, chunk, ppm + 100 * chunk) for seat in range(3)}
            for chunk, choice in enumerate(said)
        }
        return tally_of(subject, small.committee, findings, {})

    assert tally(ACCEPT, ACCEPT).decision is Decision.ACCEPTED
    assert tally(ACCEPT, ACCEPT).confidence_ppm == 995_000  # the least of its chunks
    assert tally(ACCEPT, ABSTAIN).decision is Decision.UNPROVEN
    assert tally(ABSTAIN, REJECT).decision is Decision.REJECTED
    assert [chunk.full for chunk in tally(ABSTAIN, REJECT).chunks] == [False, True, True]
    assert tally_of(subject, small.committee, {}, {}).decision is Decision.UNPROVEN


def test_only_disputed_chunks_are_asked_again_and_first_findings_stay(small: Bench) -> None:
    subject = small.subject.model_copy(update={"chunks": 2})
    first = {
        0: {0: _finding(ACCEPT, 0), 1: _finding(ACCEPT, 0)},
        1: {0: _finding(REJECT, 1), 1: _finding(ACCEPT, 1)},
    }
    changed = {seat: _finding(ACCEPT, 1) for seat in range(4)}
    noise = {seat: _finding(REJECT, 0) for seat in range(4)}
    tally = tally_of(subject, small.committee, first, {0: noise, 1: changed})
    assert tally.decision is Decision.ACCEPTED
    assert (tally.chunks[0].rejects, tally.chunks[1].rejects) == (0, 1)


# The beacon


def test_a_quorum_of_shares_gives_one_beacon_whoever_sends_them(small: Bench) -> None:
    seen = set()
    for seats in ((0, 1, 2), (3, 2, 1), (3, 0, 2), (0, 1, 2, 3)):
        state = small.lit(small.dark, seats)
        assert state.phase is Phase.COMMIT
        seen.add(state.beacon)
        assert small.dark.with_beacon(state.beacon or b"").first_asked == state.first_asked
    assert len(seen) == 1
    assert small.lit(small.dark, (0, 1)).phase is Phase.BEACON
    with pytest.raises(CommitteeError):
        _ = small.lit(small.dark, (0, 1)).seed


@pytest.mark.parametrize("bad", [b"", bytes(96), b"\xc0" + bytes(95), None, 7])
def test_bad_shares_are_dropped(small: Bench, bad: Any) -> None:
    state = small.lit(small.dark.add_share(0, bad).add_share(9, b"").add_share(-1, b""), (1, 2))
    assert state.phase is Phase.BEACON
    state = small.lit(state, (3,))
    assert state.beacon == small.start.beacon
    assert ("bad-share", 0) in _kinds(state)


@pytest.mark.parametrize("good_first", [True, False])
def test_a_seat_that_sends_two_shares_is_counted_by_the_right_one(
    small: Bench, good_first: bool
) -> None:
    good, wrong = small.share(0), small.share(1)
    order = [good, wrong] if good_first else [wrong, good]
    state = small.dark
    for share in order:
        state = state.add_share(0, share)
    assert state.light.shares == {0: good}
    assert small.lit(state, (1, 2)).beacon == small.start.beacon


def test_another_beacon_is_refused(small: Bench) -> None:
    for wrong in (b"", bytes(96), small.share(0), b"x" * 96):
        with pytest.raises(CommitteeError, match="not signed by the committee's group"):
            small.dark.with_beacon(wrong)


def test_a_committee_without_a_group_key_reviews_nothing(small: Bench) -> None:
    bare = small.committee.model_copy(update={"group_key": None})
    subject = small.subject.model_copy(update={"committee": bare.digest})
    with pytest.raises(CommitteeError, match="no group key"):
        ReviewState.start(subject, bare)
    with pytest.raises(CommitteeError, match="another committee"):
        ReviewState.start(small.subject, bare)


def test_what_the_lottery_does_not_draw_is_accepted_unseen(seats_of: Any) -> None:
    never = Bench(seats_of(4), review_ppm=0)
    state = never.start
    assert (state.phase, state.drawn, state.basis) == (Phase.SIGN, False, Basis.WAIVED)
    tally = state.tally()
    assert (tally.decision, tally.confidence_ppm, tally.chunks) == (Decision.ACCEPTED, 0, ())
    commit, reveal = never.message(0, REJECT)
    state = state.add_commit(commit).add_reveal(reveal)  # nobody was asked
    for seat in range(3):
        state = state.add_partial(seat, never.partial(seat, state.message()))
    state, attestation = state.attested()
    assert attestation is not None and attestation.basis is Basis.WAIVED
    assert attestation.confidence_ppm == 0
    reviewed = never.subject.message(Decision.ACCEPTED, 0, Basis.REVIEWED)
    assert attestation.message() != reviewed
    assert not state.evidence()


def test_the_lottery_draws_as_often_as_it_should(seats_of: Any) -> None:
    drawn = 0
    for number in range(40):
        bench = Bench(seats_of(4), review_ppm=500_000, operator=Account.from_seed(
            bytes([number])).address)  # fmt: skip
        drawn += bench.start.drawn
    assert 8 <= drawn <= 32  # 4σ


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
def test_a_commit_with_a_bad_signature_is_dropped_and_the_batch_is_not(
    small: Bench, field: str
) -> None:
    commit, _ = small.message(1, ACCEPT)
    broken = commit.model_copy(update={field: bytes(len(getattr(commit, field)))})
    good = [small.message(seat, ACCEPT)[0] for seat in (0, 2, 3)]
    state = small.start.add_commits([*good, broken])
    assert {seat for seat, _ in state.commits} == {0, 2, 3}
    assert _kinds(state) == {("bad-signature", 1)}


def test_a_commit_signed_by_another_seat_is_dropped(small: Bench) -> None:
    commit, _ = small.message(1, ACCEPT)
    state = small.start.add_commit(commit.model_copy(update={"seat": 2}))
    assert not state.commits


def test_signatures_that_only_hold_together_are_not_taken(small: Bench) -> None:
    """Two seats add and subtract one point: their sum is right, neither signature is."""
    from blspy import G2Element

    commits = [small.message(seat, ACCEPT)[0] for seat in range(4)]
    shift = G2Element.from_bytes(small.partial(0, b"anything"))
    up = bytes(G2Element.from_bytes(commits[0].signature) + shift)
    down = bytes(G2Element.from_bytes(commits[1].signature) + shift.negate())
    commits[0] = commits[0].model_copy(update={"signature": up})
    commits[1] = commits[1].model_copy(update={"signature": down})
    state = small.start.add_commits(commits)
    assert {seat for seat, _ in state.commits} == {2, 3}


def test_a_batch_is_right_when_each_of_it_is(bench: Bench) -> None:
    items = []
    for seat in range(21):
        commit = bench.message(seat, ACCEPT)[0]
        items.append((bench.committee.seats[seat].public, commit.message(), commit.signature))
    assert all_signed(items) and all_signed([]) and all_signed(items[:1])
    for number in (0, 10, 20):
        public, message, _ = items[number]
        for wrong in (b"", bytes(96), items[number - 1][2], b"\xc0" + bytes(95)):
            assert not all_signed([*items[:number], (public, message, wrong), *items[number + 1 :]])
    assert not all_signed([(b"", *items[0][1:]), *items[1:]])


def test_messages_about_another_subject_or_chunk_are_dropped(small: Bench) -> None:
    commit, reveal = small.message(0, ACCEPT)
    state = small.start.add_commit(commit.model_copy(update={"subject": bytes(32)}))
    assert not state.commits and _kinds(state) == {("wrong-task", 0)}
    vote = reveal.vote.model_copy(update={"subject": bytes(32)})
    keys = small.keys(0)  # a seat may even commit to a vote on another task
    crossed = keys.sign_commitment(reveal.vote, vote.commitment(SALT))
    state = fold(small.start, [(crossed, VoteReveal(vote=vote, salt=SALT))])
    assert not state.reveals and _kinds(state) == {("wrong-task", 0)}
    beyond = keys.vote(small.subject, 0, [_finding(ACCEPT, 0), _finding(ACCEPT, 5)])
    state = fold(small.start, [(keys.commit(beyond, SALT), keys.reveal(beyond, SALT))])
    assert not state.reveals and _kinds(state) == {("wrong-task", 0)}


def test_a_vote_holds_each_chunk_once_and_in_order(small: Bench) -> None:
    for chunks in ((1, 0), (0, 0), ()):
        with pytest.raises((EncodingError, ValueError)):
            Vote(
                seat=0, subject=bytes(32), wave=0,
                findings=tuple(_finding(ACCEPT, chunk) for chunk in chunks),
            )  # fmt: skip
    vote = small.keys(0).vote(small.subject, 3, [_finding(ACCEPT, 2), _finding(REJECT, 1)])
    assert [finding.chunk for finding in vote.findings] == [1, 2]
    assert Vote.from_canonical(vote.canonical()) == vote


def test_a_reveal_must_open_its_seats_own_commit(small: Bench) -> None:
    commit, reveal = small.message(0, ACCEPT)
    other = reveal.vote.findings[0].model_copy(update={"decision": REJECT})
    changed = reveal.model_copy(
        update={"vote": reveal.vote.model_copy(update={"findings": (other,)})}
    )
    salted = reveal.model_copy(update={"salt": bytes(32)})
    state = small.start.add_commit(commit).close_commits()
    for each in (changed, salted, small.message(1, ACCEPT)[1]):
        state = state.add_reveal(each)
    assert not state.reveals
    assert _kinds(state) == {("unmatched-reveal", 0), ("unmatched-reveal", 1)}


def test_a_copied_commit_cannot_be_opened_and_is_evidence(small: Bench) -> None:
    commit, reveal = small.message(0, ACCEPT)
    copied = small.keys(1).sign_commitment(reveal.vote, commit.commitment)
    words = reveal.model_copy(update={"vote": reveal.vote.model_copy(update={"seat": 1})})
    for order in ([commit, copied], [copied, commit]):
        state = small.start.add_commits(order).close_commits()
        state = state.add_reveal(words).add_reveal(reveal).close_reveals()
        assert set(state.reveals) == {(0, 0)}
        (proof,) = state.evidence()
        assert (proof.kind, proof.seat) == ("copy", 1)
        assert proof.opening == reveal and proof.commits == (copied, commit)


def test_equivocation_costs_the_vote_and_is_evidence(small: Bench) -> None:
    one, opened = small.message(2, ACCEPT)
    two, reopened = small.message(2, REJECT)
    for order in ([one, two], [two, one, two]):
        state = small.start.add_commits(order).close_commits()
        state = state.add_reveal(opened).add_reveal(reopened).close_reveals()
        assert not state.reveals
        (proof,) = state.evidence()
        assert (proof.kind, proof.seat) == ("equivocation", 2)
        assert {item.commitment for item in proof.commits} == {one.commitment, two.commitment}


def test_votes_in_two_waves_are_no_equivocation_and_the_first_counts(small: Bench) -> None:
    state = fold(
        small.start,
        [small.message(2, ACCEPT), small.message(2, REJECT, 999_000, SALT, 1),
         small.message(3, ACCEPT)],
    )  # fmt: skip
    assert state.tally().decision is Decision.ACCEPTED
    assert [(item.kind, item.seat) for item in state.evidence()] == [("false-accusation", 2)]


def test_a_false_accusation_is_evidence_once_the_output_is_accepted(bench: Bench) -> None:
    votes = {seat: (REJECT if seat in (0, 5) else ACCEPT, 999_000) for seat in range(21)}
    state = bench.full(votes, {seat: votes[seat] for seat in range(7)})
    assert state.tally().decision is Decision.ACCEPTED
    assert [(item.kind, item.seat) for item in state.evidence()] == [
        ("false-accusation", 0), ("false-accusation", 5),
    ]  # fmt: skip
    for proof in state.evidence():
        assert proof.opening is not None
        assert proof.commits[0].commitment == proof.opening.vote.commitment(proof.opening.salt)
    others = bench.full(dict.fromkeys(range(21), (REJECT, 999_000)))
    assert others.tally().decision is Decision.REJECTED and not others.evidence()


@pytest.mark.parametrize(("ppm", "accused"), [(999_000, [2, 6, 20]), (998_999, [])])
def test_to_accept_what_is_wrong_for_sure_is_evidence(
    bench: Bench, ppm: int, accused: list[int]
) -> None:
    votes = {seat: (ACCEPT, 999_000) if seat in (2, 6, 20) else (REJECT, ppm) for seat in range(21)}
    state = bench.full(votes, {seat: votes[seat] for seat in range(7)})
    assert state.tally().decision is Decision.REJECTED
    assert [(item.kind, item.seat) for item in state.evidence()] == [
        ("false-acceptance", seat) for seat in accused
    ]


def test_conflicted_seats_do_not_judge(seats_of: Any) -> None:
    seats = seats_of(21)
    bench = Bench(seats, node=seats.committee.seats[4].account)
    assert bench.start.shut == {4}
    assert 4 not in {seat for chunk in bench.start.first_asked for seat in chunk}
    votes = dict.fromkeys(range(4, 10), (ACCEPT, 999_000))
    state = bench.first(votes)
    assert state.disputed == (0,) and ("conflicted", 4) in _kinds(state)
    assert 4 not in state.full_asked


def test_messages_that_come_in_another_phase_do_not_count(small: Bench) -> None:
    (commit, reveal), (late, late_reveal) = small.message(0, ACCEPT), small.message(1, ACCEPT)
    full, full_reveal = small.message(2, ACCEPT, 999_000, SALT, FULL_WAVE)
    state = small.dark.add_commit(commit)
    assert _kinds(state) == {("early-commit", 0)}
    state = small.start.add_reveal(reveal).add_partial(0, bytes(96)).add_commit(full)
    state = state.add_commit(commit).close_commits()
    state = state.add_commit(late).add_reveal(late_reveal).add_reveal(full_reveal).close_reveals()
    state = state.add_reveal(reveal)
    assert not state.reveals and not state.partials and set(state.commits) == {(0, 0)}
    assert _kinds(state) == {
        ("early-reveal", 0), ("early-partial", 0), ("early-commit", 2), ("late-commit", 1),
        ("unmatched-reveal", 1), ("early-reveal", 2), ("late-reveal", 0),
    }  # fmt: skip
    assert state.evidence() == ()


def test_a_late_second_commit_is_evidence_but_changes_no_vote(small: Bench) -> None:
    one, opened = small.message(2, ACCEPT)
    state = small.start.add_commit(one).close_commits().add_commit(small.message(2, REJECT)[0])
    state = state.add_reveal(opened).close_reveals()
    assert set(state.reveals) == {(2, 0)}
    assert [item.kind for item in state.evidence()] == ["equivocation"]


def test_the_outcome_is_not_known_before_the_reveals_are_closed(small: Bench) -> None:
    with pytest.raises(CommitteeError):
        small.dark.close_commits()
    with pytest.raises(CommitteeError):
        small.start.close_reveals()
    with pytest.raises(CommitteeError):
        small.start.close_commits().message()


# Signatures


def test_bad_partials_are_dropped_without_the_rest(bench: Bench) -> None:
    state = bench.first(dict.fromkeys(range(7), (ACCEPT, 999000)))
    message = state.message()
    wrong = bench.subject.message(Decision.REJECTED, 1_000_000)
    rubbish = {0: b"", 1: bytes(96), 2: b"\xc0" + bytes(95), 3: bench.partial(3, wrong),
               4: bench.partial(5, message), 5: bytes(200), 6: bytes(range(96))}  # fmt: skip
    for seat in range(7, 20):
        state = state.add_partial(seat, bench.partial(seat, message))
    for seat, partial in rubbish.items():
        state = state.add_partial(seat, partial)
    state, attestation = state.attested()
    assert attestation is None and set(state.partials) == set(range(7, 20))
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
    state = small.first(dict.fromkeys(range(4), (ACCEPT, 999000)))
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


# Safety and liveness

CHOICES = st.sampled_from([ACCEPT, REJECT, ABSTAIN])
ONE_VOTE = st.tuples(CHOICES, st.sampled_from([0, 500_000, 989_999, 990_000, 1_000_000]))


@pytest.mark.parametrize("truth", [ACCEPT, REJECT])
def test_one_of_four_seats_may_do_anything(small: Bench, truth: VoteChoice) -> None:
    """Exhaustive for n = 4, f = 1: each traitor, each pair that looks first, whatever the traitor
    says in either look (nothing, two things, any choice), and whatever it signs."""
    says: list[tuple[VoteChoice, ...]] = [(), (ACCEPT,), (REJECT,), (ABSTAIN,), (ACCEPT, REJECT)]
    pairs = [(a, b) for a in range(4) for b in range(a + 1, 4)]
    right = Decision.ACCEPTED if truth is ACCEPT else Decision.REJECTED
    seen: set[Decision] = set()
    for traitor, pair, first, second in product(range(4), pairs, says, says):
        state = small.start
        for full, own in ((False, first), (True, second)):
            if state.phase is Phase.SIGN:
                break
            wave = FULL_WAVE if full else 0
            asked = set(state.full_asked) if full else set(pair)
            messages = [
                small.message(seat, truth, 999_000, SALT, wave) for seat in asked - {traitor}
            ]
            if traitor in asked:
                messages += [small.message(traitor, c, 999_000, SALT, wave) for c in own]
            state = fold(state, messages)
        assert state.phase is Phase.SIGN
        decision = state.tally().decision
        seen.add(decision)
        assert decision is right
        signed = state
        for seat in set(range(4)) - {traitor}:
            signed = signed.add_partial(seat, small.partial(seat, state.message()))
        for wrong in (b"other", bytes(96)):
            partial = small.partial(traitor, b"other") if wrong == b"other" else wrong
            _, attestation = signed.add_partial(traitor, partial).attested()
            assert attestation is not None and attestation.decision is right
    assert seen == {right}


@RELAXED
@given(data=st.data())
def test_order_repetition_and_interleaving_change_nothing(small: Bench, data: Any) -> None:
    votes = data.draw(st.dictionaries(st.integers(0, 3), st.lists(ONE_VOTE, max_size=3)))
    messages = [small.message(s, *vote) for s, many in votes.items() for vote in many]
    again = [small.message(s, *vote, SALT, FULL_WAVE) for s, many in votes.items() for vote in many]
    states = []
    for _ in range(2):
        state = small.lit(small.dark, data.draw(st.permutations([0, 1, 2, 3] * 2)))
        for said in (messages, again):
            shuffled = st.permutations(said + said)
            state = state.add_commits([m[0] for m in data.draw(shuffled)]).close_commits()
            for _, reveal in data.draw(shuffled):
                state = state.add_reveal(reveal)
            state = state.close_reveals()
        partials = data.draw(st.permutations([(s, bad) for s in range(4) for bad in (0, 1)] * 2))
        for seat, bad in partials:
            signed = b"another message" if bad and seat == 3 else state.message()
            state = state.add_partial(seat, small.partial(seat, signed))
        states.append(state)
    one, other = states
    assert (one.commits, one.reveals, one.dropped(), one.evidence(), one.beacon) == (
        other.commits, other.reveals, other.dropped(), other.evidence(), other.beacon,
    )  # fmt: skip
    assert one.attested()[1] == other.attested()[1] is not None


@RELAXED
@given(data=st.data())
def test_one_honest_seat_a_chunk_keeps_wrong_work_out(bench: Bench, data: Any) -> None:
    """Six traitors, asked or not, vote as they like on wrong work, in waves of their choice, and
    honest votes are lost: it is never accepted while one honest vote on it is heard."""
    traitors = data.draw(st.sets(st.integers(0, 20), min_size=6, max_size=6))
    honest = sorted(set(range(21)) - traitors)
    heard = data.draw(st.sets(st.sampled_from(honest)))
    state = bench.start
    for full in (False, True):
        if state.phase is Phase.SIGN:
            break
        wave = FULL_WAVE if full else data.draw(st.integers(0, FULL_WAVE - 1))
        messages = [bench.message(seat, REJECT, 999_000, SALT, wave) for seat in sorted(heard)]
        for seat in sorted(traitors):
            for vote in data.draw(st.lists(ONE_VOTE, max_size=2)):
                messages.append(bench.message(seat, *vote, SALT, wave))
        state = fold(state, data.draw(st.permutations(messages)))
    assert state.tally().decision is not Decision.ACCEPTED
    if len(heard) >= 14:
        assert state.tally().decision is Decision.REJECTED


@RELAXED
@given(data=st.data())
def test_six_byzantine_seats_cannot_turn_an_honest_acceptance(bench: Bench, data: Any) -> None:
    traitors = data.draw(st.sets(st.integers(0, 20), max_size=6))
    honest = {
        seat: (ACCEPT, data.draw(st.sampled_from([990_000, 995_000, 999_000])))
        for seat in set(range(21)) - traitors
    }
    state = bench.start
    for full in (False, True):
        if state.phase is Phase.SIGN:
            break
        wave = FULL_WAVE if full else 0
        asked = set(state.full_asked) if full else set(bench.order)
        messages = [
            bench.message(seat, *vote, SALT, wave) for seat, vote in honest.items() if seat in asked
        ]
        for seat in sorted(traitors):
            for vote in data.draw(st.lists(ONE_VOTE, max_size=2)):
                messages.append(bench.message(seat, *vote, SALT, wave))
        state = fold(state, data.draw(st.permutations(messages)))
    tally = state.tally()
    assert tally.decision is Decision.ACCEPTED
    assert 990_000 <= tally.confidence_ppm <= 1_000_000
    other = bench.subject.message(data.draw(st.sampled_from(Decision)), 123)
    for seat in range(21):
        signs = data.draw(st.sampled_from([other, b"rubbish"])) if seat in traitors else None
        state = state.add_partial(seat, bench.partial(seat, signs or state.message()))
    state, attestation = state.attested()
    assert attestation is not None
    assert attestation.decision is Decision.ACCEPTED
    assert attestation.signers == sum(1 << seat for seat in honest)
    accused = {proof.seat for proof in state.evidence()}
    assert accused <= traitors


@RELAXED
@given(data=st.data())
def test_lost_messages_never_reject_honest_work(bench: Bench, data: Any) -> None:
    traitors = data.draw(st.sets(st.integers(0, 20), max_size=6))
    lost = data.draw(st.sets(st.integers(0, 20)))
    votes = {
        seat: (REJECT, 1_000_000) if seat in traitors else (ACCEPT, 999_000) for seat in range(21)
    }
    heard = {seat: vote for seat, vote in votes.items() if seat not in lost}
    state = bench.full(heard)
    accepts = sum(1 for seat in heard if seat not in traitors)
    first = [heard.get(seat) for seat in bench.order]
    quick = all(vote is not None and vote[0] is ACCEPT for vote in first)
    expected = Decision.ACCEPTED if quick or accepts >= 14 else Decision.UNPROVEN
    assert state.tally().decision is expected


@RELAXED
@given(data=st.data())
def test_a_lying_aggregator_cannot_get_two_attestations(bench: Bench, data: Any) -> None:
    """Honest seats sign one outcome each; six traitors sign everything."""
    traitors = set(range(6))
    outcomes = [
        bench.first(dict.fromkeys(range(7), (ACCEPT, 999000))),
        bench.full(dict.fromkeys(range(13), (ACCEPT, 999000)), dict.fromkeys((0, 1), (ACCEPT, 0))),
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


def test_a_replayed_record_gives_the_same_state(bench: Bench) -> None:
    votes = {seat: (REJECT if seat in bench.order[:1] else ACCEPT, 999_000) for seat in range(21)}
    state = bench.full(votes)
    looks = tuple(
        look_of(state.commit_set(full=full), state.reveal_set(full=full)) for full in (False, True)
    )
    record = Record(beacon=state.beacon or b"", looks=looks)
    again = replayed(bench.subject, bench.committee, record)
    assert again.message() == state.message() and again.phase is Phase.SIGN
    assert state.evidence() and not again.evidence(), "an aggregate convicts nobody"
    half = replayed(bench.subject, bench.committee, record.model_copy(update={"looks": looks[:1]}))
    assert half.phase is Phase.FULL_COMMIT


def test_a_closed_set_is_taken_whole_or_not_at_all(bench: Bench) -> None:
    commits = [bench.message(seat, ACCEPT)[0] for seat in range(8)]
    look = look_of(commits)
    assert {seat for seat, _ in bench.start.add_closed(look).commits} == set(range(8))
    assert bench.start.add_closed(Look()) == bench.start
    pledge = look.commits[0]
    for changed in (
        {"commits": look.commits[1:]},
        {"commits": (*look.commits, pledge.model_copy(update={"seat": 9}))},
        {"commits": (pledge.model_copy(update={"wave": 1}), *look.commits[1:])},
        {"commits": (pledge.model_copy(update={"seat": 99}), *look.commits[1:])},
        {"commits": (pledge.model_copy(update={"commitment": bytes(32)}), *look.commits[1:])},
        {"signature": None},
        {"signature": bytes(96)},
        {"signature": commits[0].signature},
    ):
        with pytest.raises(CommitteeError, match="not what its seats signed"):
            bench.start.add_closed(look.model_copy(update=changed))
