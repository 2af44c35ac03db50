"""Threshold BLS: any quorum of holders makes the group's one signature, fewer make nothing."""

from __future__ import annotations

import random

import pytest
from blspy import G2Element

from daifi_flows.errors import KeyMaterialError
from daifi_flows.keys import BlsKey, verify_bls
from daifi_flows.threshold import combine_shares, deal, recover_signature, shares_sound

N, T = 21, 14
DEALING = deal(b"d" * 32, N, T)
MESSAGE = b"daifi/test/1 the parent's hash"
SHARES = {i: key.sign(MESSAGE) for i, key in enumerate(DEALING.secrets)}
SIGNATURE = combine_shares({i: SHARES[i] for i in range(T)})


def recover(shares: dict[int, bytes]) -> bytes:
    return recover_signature(DEALING.group_key, DEALING.shares, T, MESSAGE, shares)


def test_any_quorum_makes_the_same_signature() -> None:
    assert verify_bls(DEALING.group_key, MESSAGE, SIGNATURE)
    draw = random.Random(7)
    for _ in range(20):
        chosen = draw.sample(range(N), T)
        assert combine_shares({i: SHARES[i] for i in chosen}) == SIGNATURE


@pytest.mark.parametrize(("n", "t"), [(1, 1), (2, 1), (2, 2), (4, 3), (7, 5), (63, 42), (255, 3)])
def test_every_size_of_group(n: int, t: int) -> None:
    dealing = deal(b"other" * 8, n, t)
    last = {i: dealing.secrets[i].sign(b"m") for i in range(n - t, n)}
    assert verify_bls(dealing.group_key, b"m", combine_shares(last))
    assert shares_sound(dealing.group_key, dealing.shares, t)


def test_fewer_than_the_threshold_make_nothing() -> None:
    few = {i: SHARES[i] for i in range(T - 1)}
    assert not verify_bls(DEALING.group_key, MESSAGE, combine_shares(few))
    with pytest.raises(KeyMaterialError, match="13 valid signature shares, 14 are needed"):
        recover(few)


@pytest.mark.parametrize(
    "bad",
    [
        BlsKey.from_seed(b"stranger").sign(MESSAGE),
        DEALING.secrets[3].sign(b"another message"),
        SHARES[4],
        bytes(96),
        b"\xc0" + bytes(95),  # the point at infinity
        b"short",
        bytes(G2Element.generator()),
    ],
    ids=["stranger", "other message", "other's share", "zeros", "infinity", "short", "generator"],
)
def test_a_wrong_share_is_found_and_left_out(bad: bytes) -> None:
    assert recover({**SHARES, 3: bad}) == SIGNATURE
    with pytest.raises(KeyMaterialError, match="13 valid"):
        recover({**{i: SHARES[i] for i in range(T)}, 3: bad})


def test_seven_wrong_shares_do_not_stop_fourteen_right_ones() -> None:
    wrong = {i: SHARES[(i + 1) % N] for i in range(7)}
    assert recover({**SHARES, **wrong, 99: b"nobody's", -1: b"nobody's"}) == SIGNATURE


def test_shares_verify_under_their_holders_public_share() -> None:
    for public, share in zip(DEALING.shares, SHARES.values(), strict=True):
        assert verify_bls(public, MESSAGE, share)


def test_dealing_is_a_function_of_its_seed() -> None:
    assert deal(b"d" * 32, N, T).group_key == DEALING.group_key
    assert deal(b"e" * 32, N, T).group_key != DEALING.group_key


def test_public_shares_off_the_polynomial_are_noticed() -> None:
    key, publics = DEALING.group_key, DEALING.shares
    assert shares_sound(key, publics, T)
    assert shares_sound(key, publics, T + 1), "a lower degree is a higher one too"
    assert not shares_sound(key, publics, T - 1)
    swapped = (publics[1], publics[0], *publics[2:])
    foreign = (*publics[:-1], BlsKey.from_seed(b"foreign").public)
    assert not shares_sound(key, swapped, T)
    assert not shares_sound(key, foreign, T)
    assert not shares_sound(BlsKey.from_seed(b"foreign").public, publics, T)
    assert not shares_sound(key, (*publics[:-1], b"short"), T)
    assert not shares_sound(key, publics, N + 1)


@pytest.mark.parametrize(
    ("seed", "n", "t"), [(bytes(32), 3, 4), (bytes(32), 3, 0), (b"x", 3, 2), (bytes(32), 256, 2)]
)
def test_impossible_dealings_are_refused(seed: bytes, n: int, t: int) -> None:
    with pytest.raises(KeyMaterialError):
        deal(seed, n, t)


@pytest.mark.parametrize("shares", [{}, {-1: SHARES[0]}, {255: SHARES[0]}, {0: bytes(96)}])
def test_what_cannot_be_combined_is_refused(shares: dict[int, bytes]) -> None:
    with pytest.raises(KeyMaterialError):
        combine_shares(shares)
