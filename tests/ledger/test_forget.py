"""Tasks that are over leave the state, and what happened stays proven."""

from __future__ import annotations

import ledger_kinds as t
import pytest
from ledger_bench import META
from ledger_kit import BUYER, DAI, OTHER, STRANGER, attest, make_spec
from market_bench import Market

from daifi_flows.cnft import token_id_of
from daifi_flows.dispute import DisputeFinding
from daifi_flows.ledger import TaskState
from daifi_flows.ledger._tx.tasks import MAX_FORGOTTEN

DAY = 86_400_000


def over(bench: Market, how: str, number: int = 0):
    """A task that ended so."""
    spec = make_spec(number)
    if how == "settled":
        bench.reach(TaskState.SETTLED, spec)
    elif how == "cancelled":
        bench.reach(TaskState.OPEN, spec)
        bench.do(t.Cancel, BUYER, task_id=spec.task_id)
    elif how == "expired":
        bench.reach(TaskState.ASSIGNED, spec)
        bench.now = spec.deadline_ms
        bench.do(t.Expire, STRANGER, task_id=spec.task_id)
    else:
        bench.disputed(spec)
        bench.resolve(spec, DisputeFinding.UPHELD)
    return spec


def forget(bench: Market, *specs) -> t.Transaction:
    return bench.make(t.Forget, STRANGER, tasks=tuple(spec.task_id for spec in specs))


@pytest.mark.parametrize("how", ["settled", "cancelled", "expired", "revoked"])
def test_a_task_is_kept_as_long_as_it_matters(how: str) -> None:
    bench = Market()
    spec = over(bench, how)
    bench.now = spec.deadline_ms + DAY
    assert bench.refused(forget(bench, spec)) == "bad-state"
    bench.now += 1
    bench.run(forget(bench, spec))
    assert bench.state.task(spec.task_id) is None
    minted = bench.state.token(token_id_of(spec.task_id)) is not None
    assert minted == (how in ("settled", "revoked"))
    # It cannot be opened, settled or forgotten again.
    reopened = "duplicate" if minted else "expired"
    assert bench.refused(bench.make(t.Open, BUYER, spec=spec)) == reopened
    settle = bench.make(t.Settle, BUYER, attestation=attest(spec), metadata=META)
    assert bench.refused(settle) == "unknown"
    assert bench.refused(forget(bench, spec)) == "unknown"


@pytest.mark.parametrize("state", [TaskState.OPEN, TaskState.ASSIGNED, TaskState.COMMITTED])
def test_a_task_with_money_in_it_is_not_forgotten(state: TaskState) -> None:
    bench = Market()
    spec = bench.reach(state)
    bench.now = spec.deadline_ms + 10 * DAY
    assert bench.refused(forget(bench, spec)) == "bad-state"
    bench.do(t.Expire, STRANGER, task_id=spec.task_id)
    bench.run(forget(bench, spec))


def test_a_disputed_output_is_not_forgotten() -> None:
    bench = Market()
    spec = make_spec(deadline_ms=bench.now + 1_000)
    bench.disputed(spec)
    bench.now += 2 * DAY
    assert bench.refused(forget(bench, spec)) == "bad-state"
    bench.do(t.ExpireDispute, STRANGER, task_id=spec.task_id, number=0)
    assert bench.refused(forget(bench, spec)) == "bad-state"  # it can be disputed again
    bench.now = bench.state.task(spec.task_id).challenge_until_ms + DAY
    assert bench.refused(forget(bench, spec)) == "bad-state"  # seats' votes can be shown false
    bench.now += 1
    bench.run(forget(bench, spec))


def test_many_are_forgotten_at_once_or_none() -> None:
    bench = Market()
    specs = [over(bench, "cancelled", number) for number in range(4)]
    bench.do(t.Open, BUYER, spec=make_spec(9, deadline_ms=specs[0].deadline_ms + 2 * DAY))
    alive = make_spec(9, deadline_ms=specs[0].deadline_ms + 2 * DAY)
    bench.now = specs[0].deadline_ms + DAY + 1
    assert bench.refused(forget(bench, *specs, alive)) == "bad-state"
    assert bench.refused(forget(bench, *specs, specs[0])) == "unknown"
    bench.run(forget(bench, *specs))
    assert all(bench.state.task(spec.task_id) is None for spec in specs)
    assert bench.state.task(alive.task_id) is not None
    with pytest.raises(ValueError, match="256"):
        bench.make(t.Forget, OTHER, tasks=(META,) * (MAX_FORGOTTEN + 1))
    with pytest.raises(ValueError, match="1"):
        bench.make(t.Forget, OTHER, tasks=())


def test_the_state_is_as_small_as_before() -> None:
    bench = Market()
    over(bench, "settled", 0)
    before = len(bench.state.entries)
    specs = [over(bench, "settled", number) for number in range(1, 6)]
    assert bench.balance(BUYER) == 1_000 * DAI - 6 * 2 * DAI
    assert len(bench.state.entries) == before + 2 * len(specs)
    bench.now = specs[0].deadline_ms + DAY + 1
    bench.run(forget(bench, *specs))
    grown = len(bench.state.entries) - before
    assert grown == len(specs) + 1  # the tokens, and the stranger's nonce
