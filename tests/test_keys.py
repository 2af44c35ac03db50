"""Accounts, BLS keys, sealed boxes: honest use, and a table of attacks."""

import stat
from pathlib import Path

import pytest

from daifi_flows.encoding import keccak256
from daifi_flows.errors import KeyMaterialError
from daifi_flows.keys import (
    Account,
    BlsKey,
    aggregate_bls,
    check_possession,
    keep_first,
    open_box,
    recover_address,
    seal_box,
    verify_bls,
    verify_bls_aggregate,
)

N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
DIGEST = keccak256(b"message")
ALICE, BOB = Account.from_seed(b"alice"), Account.from_seed(b"bob")
SEATS = [BlsKey.from_seed(bytes([i])) for i in range(21)]


def test_a_signature_recovers_to_its_address() -> None:
    assert recover_address(DIGEST, ALICE.sign(DIGEST)) == ALICE.address
    assert recover_address(DIGEST, BOB.sign(DIGEST)) != ALICE.address


def _malleated(signature: bytes) -> bytes:
    s = N - int.from_bytes(signature[32:64], "big")
    return signature[:32] + s.to_bytes(32, "big") + bytes([55 - signature[64]])


@pytest.mark.parametrize(
    ("name", "signature"),
    [
        ("empty", b""),
        ("short", ALICE.sign(DIGEST)[:-1]),
        ("long", ALICE.sign(DIGEST) + b"\x00"),
        ("malleated", _malleated(ALICE.sign(DIGEST))),
        ("raw v", ALICE.sign(DIGEST)[:64] + b"\x00"),
        ("zeros", bytes(64) + b"\x1b"),
        ("ones", b"\xff" * 65),
    ],
)
def test_malformed_signatures_are_refused(name: str, signature: bytes) -> None:
    with pytest.raises(KeyMaterialError):
        recover_address(DIGEST, signature)


def test_key_files_are_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "buyer"
    first = Account.load(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Account.load(path).address == first.address
    assert [entry.name for entry in path.parent.iterdir()] == ["buyer"]


@pytest.mark.parametrize("text", ["", "zz", "00" * 31, "00" * 32])
def test_damaged_key_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").write_text(text)
    with pytest.raises(KeyMaterialError, match="restore or remove it"):
        Account.load(tmp_path / "key")


def test_a_secret_never_shows_in_a_repr() -> None:
    assert ALICE.secret.hex() not in repr(ALICE)
    assert SEATS[0].secret.hex() not in repr(SEATS[0])


def test_an_aggregate_verifies_for_exactly_its_signers() -> None:
    message = b"attestation"
    signature = aggregate_bls([key.sign(message) for key in SEATS[:14]])
    publics = [key.public for key in SEATS]
    assert verify_bls_aggregate(publics[:14], message, signature)
    assert not verify_bls_aggregate(publics[:15], message, signature)
    assert not verify_bls_aggregate(publics[:13], message, signature)
    assert not verify_bls_aggregate(publics[:14], b"another", signature)
    assert not verify_bls_aggregate([], message, signature)


G1_INFINITY, G2_INFINITY = b"\xc0" + bytes(47), b"\xc0" + bytes(95)


@pytest.mark.parametrize(
    ("public", "signature"),
    [
        (G1_INFINITY, G2_INFINITY),
        (SEATS[0].public, G2_INFINITY),
        (bytes(48), SEATS[0].sign(b"m")),
        (SEATS[0].public[:-1], SEATS[0].sign(b"m")),
        (SEATS[0].public, SEATS[0].sign(b"m")[:-1]),
        (SEATS[0].public, b"\xff" * 96),
        (SEATS[0].public, SEATS[1].sign(b"m")),
    ],
)
def test_bls_attacks_are_false_and_do_not_raise(public: bytes, signature: bytes) -> None:
    assert not verify_bls(public, b"m", signature)
    assert not verify_bls_aggregate([public], b"m", signature)
    assert not check_possession(public, signature)


def test_possession_is_bound_to_the_key() -> None:
    assert check_possession(SEATS[0].public, SEATS[0].prove_possession())
    assert not check_possession(SEATS[0].public, SEATS[1].prove_possession())
    # A signature over the public key is not a proof of possession: the domains differ.
    assert not check_possession(SEATS[0].public, SEATS[0].sign(SEATS[0].public))


def test_nothing_aggregates_to_nothing() -> None:
    with pytest.raises(KeyMaterialError):
        aggregate_bls([])


def test_sealed_boxes_open_only_for_their_account() -> None:
    sealed = seal_box(ALICE.box_public, b"secret output")
    assert b"secret" not in sealed
    assert open_box(ALICE, sealed) == b"secret output"
    for wrong in (sealed[:-1], sealed[:10], b"", bytes(len(sealed))):
        with pytest.raises(KeyMaterialError):
            open_box(ALICE, wrong)
    with pytest.raises(KeyMaterialError):
        open_box(BOB, sealed)
    with pytest.raises(KeyMaterialError):
        seal_box(b"short", b"x")


def test_the_first_to_keep_a_secret_wins(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "once"
    assert keep_first(path, b"a" * 32) == b"a" * 32
    assert keep_first(path, b"b" * 32) == b"a" * 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("junk")
    with pytest.raises(KeyMaterialError):
        keep_first(path, b"b" * 32)
