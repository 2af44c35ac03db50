"""Money that waits, and evidence that fades."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from daifi_flows.ledger._economics import EVIDENCE_ONE
from daifi_flows.ledger._standing import Standing
from daifi_flows.ledger._tranches import (
    Tranche,
    due_ms,
    matured,
    taken,
    total_wei,
    with_tranche,
)

T0 = 1_700_000_000_000
tranche_lists = st.lists(
    st.tuples(st.integers(min_value=0, max_value=100), st.integers(min_value=1, max_value=10**20)),
    max_size=12,
).map(
    lambda pairs: tuple(
        Tranche(due_ms=due, amount_wei=amount) for due, amount in sorted(dict(pairs).items())
    )
)


@given(st.integers(min_value=0, max_value=2**60), st.integers(min_value=1, max_value=2**40))
def test_money_waits_its_time_and_at_most_an_eighth_more(now: int, wait: int) -> None:
    due = due_ms(now, wait)
    assert now + wait <= due <= now + wait + max(wait // 8, 1)


@given(
    st.lists(
        st.tuples(
            st.integers(min_value=0, max_value=200_000), st.integers(min_value=0, max_value=10**20)
        ),
        min_size=1,
        max_size=60,
    )
)
def test_an_account_paid_often_holds_few_tranches(paid: list[tuple[int, int]]) -> None:
    now, wait, free, locked = T0, 600_000, 0, ()
    for later, amount in paid:
        now += later
        out, locked = matured(locked, now)
        free += out
        locked = with_tranche(locked, due_ms(now, wait), amount)
        assert len(locked) <= 9
        assert list(locked) == sorted(locked, key=lambda tranche: tranche.due_ms)
        assert len({tranche.due_ms for tranche in locked}) == len(locked)
        assert all(now < tranche.due_ms for tranche in locked)
    assert free + total_wei(locked) == sum(amount for _, amount in paid)
    out, locked = matured(locked, now + wait + wait // 8)
    assert locked == ()


@given(tranche_lists, st.integers(min_value=0, max_value=2 * 10**21))
def test_what_is_taken_and_what_is_left_add_up(tranches, amount: int) -> None:
    got, left = taken(tranches, amount)
    assert got == min(amount, total_wei(tranches))
    assert got + total_wei(left) == total_wei(tranches)
    assert all(tranche.amount_wei > 0 for tranche in left)
    if left:  # only the earliest were touched
        untouched = {tranche.due_ms: tranche for tranche in tranches}
        assert all(untouched[tranche.due_ms] == tranche for tranche in left[1:])


def test_the_earliest_due_is_taken_first() -> None:
    tranches = with_tranche(with_tranche((), 30, 5), 20, 7)
    assert taken(tranches, 8) == (8, (Tranche(due_ms=30, amount_wei=4),))
    assert taken(tranches, 4) == (4, with_tranche(with_tranche((), 30, 5), 20, 3))
    assert taken(tranches, 100) == (12, ())


@given(st.data())
def test_every_payment_that_can_still_be_challenged_can_be_taken_back(data) -> None:
    """Whatever was taken back before, in whatever order."""
    now, wait, locked = T0, 600_000, ()
    open_payments: list[tuple[int, int]] = []  # last instant of the challenge, amount
    for _ in range(data.draw(st.integers(min_value=1, max_value=30))):
        now += data.draw(st.integers(min_value=0, max_value=300_000))
        _, locked = matured(locked, now)
        open_payments = [(last, amount) for last, amount in open_payments if now < last]
        if open_payments and data.draw(st.booleans()):
            number = data.draw(st.integers(min_value=0, max_value=len(open_payments) - 1))
            _, amount = open_payments.pop(number)
            got, locked = taken(locked, amount)
            assert got == amount
        else:
            amount = data.draw(st.integers(min_value=1, max_value=1_000))
            locked = with_tranche(locked, due_ms(now, wait), amount)
            open_payments.append((now + wait, amount))
        assert total_wei(locked) >= sum(amount for _, amount in open_payments)


def test_evidence_fades_and_counts() -> None:
    day = 24 * 3600 * 1000
    standing = Standing().at(T0, 30 * day)
    assert standing == Standing(at_ms=T0) and standing.reputation_ppm == 500_000
    standing = standing.with_accepted(100).with_accepted(20).with_rejected()
    assert (standing.accepted_e6, standing.rejected_e6) == (2 * EVIDENCE_ONE, EVIDENCE_ONE)
    assert standing.mflop == 120 and standing.reputation_ppm == 600_000
    later = standing.at(T0 + 30 * day, 30 * day)
    assert (later.accepted_e6, later.rejected_e6, later.mflop) == (EVIDENCE_ONE, 500_000, 60)
    assert later.at(T0, 30 * day) == later  # time does not run backwards
    assert standing.at(T0 + 9_000 * day, 30 * day).reputation_ppm == 500_000


@given(st.lists(st.integers(min_value=0, max_value=10**10), min_size=1, max_size=10))
def test_looking_often_costs_at_most_a_unit_of_evidence_a_look(waits: list[int]) -> None:
    start = Standing(accepted_e6=50 * EVIDENCE_ONE, mflop=10**15, at_ms=T0)
    often = start
    for wait in waits:
        often = often.at(often.at_ms + wait, 10**9)
    once = start.at(often.at_ms, 10**9)
    assert 0 <= once.accepted_e6 - often.accepted_e6 <= len(waits)
    assert 0 <= once.mflop - often.mflop <= len(waits)


def test_evidence_stays_in_63_bits() -> None:
    full = Standing(accepted_e6=2**63 - 1, rejected_e6=2**63 - 1, mflop=2**63 - 1, at_ms=T0)
    assert full.with_accepted(2**62).with_rejected() == full
    assert Fraction(full.reputation_ppm, 10**6) == Fraction(1, 2)
