"""Rows of hidden states: one a token, none of another request, none forgotten."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from daifi_flows.ray_mesh.engines._rows import RowKeeper

KEYS = st.sampled_from(["a", "b", "c"])


def put_all(keeper: RowKeeper, key: str, rows: list[bytes]) -> None:
    for position, row in enumerate(rows):
        keeper.put(key, position, row)


def test_taken_rows_are_those_put_and_leave_nothing() -> None:
    keeper = RowKeeper(1000)
    put_all(keeper, "a", [b"a0", b"a1"])
    put_all(keeper, "b", [b"b0"])
    taken = keeper.take("a")
    assert (taken.rows, taken.fault) == ([b"a0", b"a1"], "")
    assert (len(keeper), keeper.held_bytes) == (1, 2)
    assert keeper.take("a").fault
    assert keeper.take("b").rows == [b"b0"]
    assert (len(keeper), keeper.held_bytes) == (0, 0)


def test_a_token_computed_anew_has_one_row() -> None:
    keeper = RowKeeper(1000)
    put_all(keeper, "a", [b"a0", b"a1", b"a2"])
    keeper.put("a", 1, b"A1")
    assert keeper.held_bytes == 4
    keeper.put("a", 2, b"A2")
    assert keeper.take("a").rows == [b"a0", b"A1", b"A2"]


def test_a_row_that_was_missed_spoils_the_request_and_no_other() -> None:
    keeper = RowKeeper(1000)
    keeper.put("b", 0, b"b0")
    keeper.put("a", 0, b"a0")
    keeper.put("a", 2, b"a2")
    keeper.put("a", 3, b"a3")
    assert keeper.held_bytes == 2
    taken = keeper.take("a")
    assert taken.rows == []
    assert "position 2" in taken.fault
    assert keeper.take("b").rows == [b"b0"]


def test_what_was_dropped_does_not_come_back() -> None:
    keeper = RowKeeper(1000)
    keeper.put("a", 0, b"a0")
    keeper.take("a")
    keeper.put("a", 1, b"a1")
    assert (len(keeper), keeper.held_bytes) == (0, 0)


def test_memory_is_bounded_and_the_request_says_so() -> None:
    keeper = RowKeeper(5)
    put_all(keeper, "a", [b"a0", b"a1", b"a2"])
    assert keeper.held_bytes == 0
    assert "5 bytes" in keeper.take("a").fault
    put_all(keeper, "b", [b"b0", b"b1"])
    assert keeper.take("b").rows == [b"b0", b"b1"]


class Keeping(RuleBasedStateMachine):
    """Against a model: what a request's rows are after any order of steps, replays and drops."""

    def __init__(self) -> None:
        super().__init__()
        self.keeper = RowKeeper(60)
        self.model: dict[str, list[bytes] | None] = {}  # None: spoilt

    @rule(key=KEYS, position=st.integers(0, 6), row=st.binary(min_size=8, max_size=8))
    def put(self, key: str, position: int, row: bytes) -> None:
        self.keeper.put(key, position, row)
        rows = self.model.get(key, [])
        if key not in self.model and position:
            return
        self.model.setdefault(key, [])
        if rows is None:
            return
        others = sum(8 * len(each or []) for name, each in self.model.items() if name != key)
        if position > len(rows) or others + 8 * (position + 1) > 60:
            self.model[key] = None
        else:
            self.model[key] = [*rows[:position], row]

    @rule(key=KEYS)
    def take(self, key: str) -> None:
        taken = self.keeper.take(key)
        expected = self.model.pop(key, None)
        assert taken.rows == (expected or [])
        assert bool(taken.fault) == (expected is None)

    @invariant()
    def accounts_balance(self) -> None:
        assert len(self.keeper) == len(self.model)
        assert self.keeper.held_bytes == sum(8 * len(rows or []) for rows in self.model.values())


TestKeeping = Keeping.TestCase


@given(st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=20))
def test_rows_seen_before_the_end_are_still_there(rows: list[bytes]) -> None:
    keeper = RowKeeper(10_000)
    put_all(keeper, "a", rows)
    assert keeper.get("a").rows == rows
    assert keeper.take("a").rows == rows
