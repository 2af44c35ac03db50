"""Sortition: one draw passes the check, weights rule it, caps hold, and nothing forged passes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daifi_flows.encoding import checksum_address, keccak256
from daifi_flows.errors import EncodingError
from daifi_flows.sortition import (
    MAX_CANDIDATES,
    MAX_WEIGHT,
    Candidate,
    Draw,
    Sibling,
    SumTree,
    check_draw,
    draw,
    weigh,
)


def address(name: object) -> str:
    return checksum_address(keccak256(str(name).encode())[:20])


def beacon(number: int) -> bytes:
    return keccak256(b"beacon" + number.to_bytes(4, "big"))


def people(weights: Sequence[int], operators: Sequence[object] = ()) -> list[Candidate]:
    """Candidates by weight; ``operators`` names who runs each, where that is somebody else."""
    found = [Candidate(account=address(i), weight=weight) for i, weight in enumerate(weights)]
    for i, name in enumerate(operators):
        found[i] = found[i].model_copy(update={"operator": address(name)})
    return found


def checks(found: Draw, **changed: Any) -> bool:
    asked = {name: getattr(found, name) for name in ("root", "beacon", "seats", "per_operator")}
    return check_draw(found, **(asked | changed))


candidate_lists = st.lists(
    st.tuples(st.integers(0, 5) | st.integers(0, MAX_WEIGHT), st.integers(0, 4)), max_size=40
).map(lambda rows: people([weight for weight, _ in rows], [f"op{who}" for _, who in rows]))


@given(candidate_lists, st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
@settings(deadline=None)
def test_a_draw_is_checked_without_the_list(
    candidates: list[Candidate], seats: int, per_operator: int, number: int
) -> None:
    found = draw(beacon(number), candidates, seats, per_operator)
    assert check_draw(
        found,
        root=SumTree(candidates).root,
        beacon=beacon(number),
        seats=seats,
        per_operator=per_operator,
    )
    assert Draw.from_canonical(found.canonical()) == found
    assert draw(beacon(number), reversed(candidates), seats, per_operator) == found
    heavy = {item.account: item for item in candidates if item.weight}
    seated = {item.account for item in found.picks}
    assert len(found.picks) == len(seated) == min(seats, len(heavy))
    assert seated <= set(heavy)
    assert found.complete == (len(heavy) >= seats)
    # The cap yields only where everybody was opened, and then no more than it must.
    held = Counter(item.interest for item in found.picks)
    if len(found.opened) < len(heavy):
        assert max(held.values(), default=0) <= per_operator
    elif held:
        offered = Counter(item.interest for item in heavy.values())
        most = max(held.values())
        if most > per_operator:
            assert all(held[who] >= min(offered[who], most - 1) for who in offered)


def test_nobody_to_draw() -> None:
    for candidates in ([], people([0, 0, 0])):
        found = draw(beacon(1), candidates, 3, 1)
        assert (found.picks, found.complete, checks(found)) == ((), False, True)


def test_all_of_one_operator_fill_the_seats_all_the_same() -> None:
    found = draw(beacon(1), people([1] * 9, ["whale"] * 9), 7, 2)
    assert found.complete and checks(found)
    assert len(found.opened) == 9  # everybody was looked at before the cap gave way


def test_the_cap_rises_by_one_at_a_time() -> None:
    candidates = people([10**6] * 8 + [1] * 3, ["whale"] * 8 + ["small"] * 3)
    held = Counter(item.interest for item in draw(beacon(2), candidates, 7, 2).picks)
    assert held == {address("whale"): 4, address("small"): 3}


def test_the_cap_holds_while_there_are_others() -> None:
    candidates = people([10**9] * 30 + [1] * 5, ["whale"] * 30)
    for number in range(5):
        found = draw(beacon(number), candidates, 7, 2)
        assert checks(found)
        assert sum(item.interest == address("whale") for item in found.picks) == 2


def test_weights_are_stake_times_reputation_rounded_down() -> None:
    assert weigh(10**18, 1_000_000) == 10**6
    assert weigh(3 * 10**12, 500_000) == 1
    assert weigh(2**256 - 1, 1_000_000) == MAX_WEIGHT
    for parts in (2, 7, 21):
        stake = 10**18 + 12_345_678_901_234
        assert parts * weigh(stake // parts, 873_211) <= weigh(stake, 873_211)
    for stake, reputation in ((-1, 5), (1, -1), (1, 1_000_001)):
        with pytest.raises(EncodingError):
            weigh(stake, reputation)


def test_weights_set_the_odds() -> None:
    """Frequencies of the first seat, by chi-squared: 5 degrees of freedom, 1 in 10,000 fails."""
    weights = [1, 2, 3, 10, 30, 54]
    candidates, rounds = people(weights), 3000
    index = {item.account: i for i, item in enumerate(candidates)}
    first = Counter(
        index[draw(beacon(number), candidates, 1, 1).picks[0].account] for number in range(rounds)
    )
    expected = [rounds * weight / sum(weights) for weight in weights]
    assert sum((first[i] - mean) ** 2 / mean for i, mean in enumerate(expected)) < 25.7


def test_later_seats_are_drawn_by_weight_from_those_left() -> None:
    """Of weights 1, 2, 3 the pair {1, 2} comes with chance 1/6·2/5 + 2/6·1/4 = 3/20."""
    candidates, rounds = people([1, 2, 3]), 3000
    least = {candidates[0].account, candidates[1].account}
    hits = sum(
        {item.account for item in draw(beacon(number), candidates, 2, 1).picks} == least
        for number in range(rounds)
    )
    assert abs(hits / rounds - 0.15) < 4 * math.sqrt(0.15 * 0.85 / rounds)


def test_splitting_a_stake_gains_no_seats() -> None:
    """An owner of 1 in 150: as one account, and as eight under names of their own."""
    rounds, seats, mine = 1000, 8, 8

    def seats_won(parts: int) -> float:
        others = people([mine] * 149)
        own = [Candidate(account=address(f"me{i}"), weight=mine // parts) for i in range(parts)]
        names = {item.account for item in own}
        won = 0
        for number in range(rounds):
            found = draw(beacon(number), [*others, *own], seats, 1)
            won += sum(item.account in names for item in found.picks)
        return won / rounds

    fair = seats / 150
    noise = math.sqrt(2 * fair * (1 - fair) / rounds)
    assert seats_won(8) - seats_won(1) < 4 * noise + fair**2


def test_the_largest_draw_can_be_read_back() -> None:
    """All of one operator, so that every leaf is opened."""
    found = draw(beacon(0), people([1] * MAX_CANDIDATES, ["whale"] * MAX_CANDIDATES), 63, 1)
    assert len(found.opened) == MAX_CANDIDATES
    assert Draw.from_canonical(found.canonical()) == found


def test_too_much_is_refused() -> None:
    with pytest.raises(EncodingError, match="at most 2048"):
        SumTree(people([1] * (MAX_CANDIDATES + 1)))
    with pytest.raises(EncodingError, match="twice"):
        draw(beacon(0), people([1]) * 2, 3, 1)
    for arguments in ((b"short", [], 3, 1), (beacon(0), [], 0, 1), (beacon(0), [], 64, 1)):
        with pytest.raises(EncodingError):
            draw(*arguments)
    with pytest.raises(EncodingError):
        Candidate.from_plain({"account": address(0), "weight": MAX_WEIGHT + 1})
    with pytest.raises(EncodingError):
        SumTree([]).open(0)


# Forgeries

HONEST_LIST = people([5, 1, 8, 2, 0, 7, 7, 3, 9, 4, 6], ["a"] * 7)
HONEST = draw(beacon(5), HONEST_LIST, 4, 1)


def with_opening(number: int, **changed: Any) -> Draw:
    opened = list(HONEST.opened)
    opened[number] = opened[number].model_copy(update=changed)
    return HONEST.model_copy(update={"opened": tuple(opened)})


def with_candidate(number: int, **changed: Any) -> Draw:
    return with_opening(
        number, candidate=HONEST.opened[number].candidate.model_copy(update=changed)
    )


def with_path(number: int, level: int, change: Callable[[Sibling], Sibling]) -> Draw:
    path = list(HONEST.opened[number].path)
    path[level] = change(path[level])
    return with_opening(number, path=tuple(path))


def reopened(*indices: int) -> Draw:
    tree = SumTree(HONEST_LIST)
    return HONEST.model_copy(update={"opened": tuple(tree.open(index) for index in indices)})


INDICES = [opening.index for opening in HONEST.opened]
UNSEEN = next(i for i in range(11) if i not in INDICES)
FORGERIES: dict[str, Callable[[], Draw]] = {
    "a pick left out": lambda: reopened(*INDICES[1:]),
    "the last pick left out": lambda: reopened(*INDICES[:-1]),
    "another pick": lambda: reopened(*INDICES[:-1], UNSEEN),
    "one pick too many": lambda: reopened(*INDICES, UNSEEN),
    "a pick twice": lambda: reopened(INDICES[0], *INDICES),
    "picks in another order": lambda: reopened(*reversed(INDICES)),
    "no picks": reopened,
    "a heavier pick": lambda: with_candidate(0, weight=HONEST.opened[0].candidate.weight + 1),
    "a lighter pick": lambda: with_candidate(0, weight=HONEST.opened[0].candidate.weight - 1),
    "another account": lambda: with_candidate(1, account=address("thief")),
    "another operator": lambda: with_candidate(1, operator=address("nobody")),
    "another index": lambda: with_opening(0, index=HONEST.opened[0].index ^ 1),
    "an index beyond the leaves": lambda: with_opening(0, index=11),
    "a huge index": lambda: with_opening(0, index=2**63 - 1),
    "a shorter path": lambda: with_opening(0, path=HONEST.opened[0].path[:-1]),
    "a longer path": lambda: with_opening(
        0, path=(*HONEST.opened[0].path, HONEST.opened[0].path[0])
    ),
    "another sum": lambda: with_path(0, 0, lambda s: s.model_copy(update={"sum": s.sum + 1})),
    "a negative sum": lambda: with_path(0, 1, lambda s: s.model_copy(update={"sum": -s.sum})),
    "a wrapping sum": lambda: with_path(
        0, 1, lambda s: s.model_copy(update={"sum": s.sum + 2**64})
    ),
    "another hash": lambda: with_path(0, 2, lambda s: s.model_copy(update={"hash": bytes(32)})),
    "a hash that is none": lambda: with_path(0, 2, lambda s: s.model_copy(update={"hash": b""})),
    "another total": lambda: HONEST.model_copy(update={"total": HONEST.total + 1}),
    "a total of nothing": lambda: HONEST.model_copy(update={"total": 0, "opened": ()}),
    "a huge total": lambda: HONEST.model_copy(update={"total": 2**70}),
    "another count": lambda: HONEST.model_copy(update={"count": 12}),
    "no leaves": lambda: HONEST.model_copy(update={"count": 0, "total": 0, "opened": ()}),
    "another top": lambda: HONEST.model_copy(update={"top": bytes(32)}),
    "another root": lambda: HONEST.model_copy(update={"root": bytes(32)}),
    "another beacon": lambda: HONEST.model_copy(update={"beacon": beacon(6)}),
    "more seats": lambda: HONEST.model_copy(update={"seats": 5}),
    "another cap": lambda: HONEST.model_copy(update={"per_operator": 2}),
    "nonsense": lambda: HONEST.model_copy(update={"opened": "no", "count": None}),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_draw_is_refused(name: str) -> None:
    forged = FORGERIES[name]()
    asked: dict[str, Any] = {
        field: getattr(HONEST, field) for field in ("root", "beacon", "seats", "per_operator")
    }
    assert check_draw(HONEST, **asked)
    assert not check_draw(forged, **asked)


def test_the_forged_draw_table_covers_a_pass_over() -> None:
    """The honest draw of the table opens somebody whom the cap passes over."""
    assert len(HONEST.opened) > len(HONEST.picks) == 4


@pytest.mark.parametrize(
    "value", [None, 7, b"bytes", "text", {"opened": []}, Draw.model_construct()]
)
def test_what_is_no_draw_is_refused(value: Any) -> None:
    assert not check_draw(value, root=HONEST.root, beacon=beacon(5), seats=4, per_operator=1)


def test_sums_cannot_move_between_siblings() -> None:
    """Weight taken from one child and given to the other keeps the parent's sum, not its hash."""
    forged = with_candidate(0, weight=HONEST.opened[0].candidate.weight + 1)
    path = list(forged.opened[0].path)
    path[0] = path[0].model_copy(update={"sum": path[0].sum - 1})
    opening = forged.opened[0].model_copy(update={"path": tuple(path)})
    assert not checks(forged.model_copy(update={"opened": (opening, *forged.opened[1:])}))


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_any_changed_byte_is_refused(data: st.DataObject) -> None:
    raw = bytearray(HONEST.canonical())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        forged = Draw.from_canonical(bytes(raw))
    except EncodingError:
        return
    assert not check_draw(forged, root=HONEST.root, beacon=HONEST.beacon, seats=4, per_operator=1)
