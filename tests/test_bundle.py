"""Bundles: one spelling, content-addressed, refused when any byte differs."""

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daifi_flows.bundle import FILES, Bundle
from daifi_flows.errors import BundleError

CHUNK = 1024 * 1024


def make(**sizes: int) -> Bundle:
    """A bundle of random bytes: the layer under test is content addressing, not meaning."""
    chaos = random.Random(7)
    names = {"output_tensor": 10, "metadata.json": 300, "model_attestation": 1, "zk_proof.bin": 99}
    wanted = names | {key.replace("_json", ".json"): value for key, value in sizes.items()}
    return Bundle({name: chaos.randbytes(size) for name, size in wanted.items()})


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 5])
def test_car_and_directory_hold_the_same_files(tmp_path: Path, size: int) -> None:
    bundle = make(output_tensor=size)
    bundle.write(tmp_path / "step")
    assert Bundle.read(tmp_path / "step").files == bundle.files
    assert Bundle.read(tmp_path / "step.car").files == bundle.files
    assert Bundle.read(tmp_path / "step.car").cid == bundle.cid
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step", "step.car"]


@pytest.mark.parametrize(
    ("output", "cid"),
    [
        (b"output_tensor", "bafybeib4lejnqmqraobttvyuxnvnid5w6eeb2237mjzhaf7oy4odjnxjym"),
        (
            b"\x07" * (3 * CHUNK + 5),
            "bafybeibv2wganrv3a5qyutspqxopv5v6nwe22t3glvtwzheianzhx7dtki",
        ),
    ],
)
def test_the_cid_is_what_ipfs_gives(output: bytes, cid: str) -> None:
    # Vectors from ipfs-unixfs-importer (the JavaScript implementation): CIDv1, raw leaves,
    # 1 MiB chunks, each file holding its own name but for the large one.
    files = {name: name.encode() for name in FILES} | {"output_tensor": output}
    assert Bundle(files).cid == cid


def test_writing_again_replaces_the_whole_bundle(tmp_path: Path) -> None:
    make().write(tmp_path / "step")
    newer = make(output_tensor=77)
    newer.write(tmp_path / "step")
    assert Bundle.read(tmp_path / "step").files == newer.files


@settings(max_examples=200)
@given(st.data())
def test_any_changed_byte_of_a_car_is_refused(data: st.DataObject) -> None:
    car = make().car()
    at = data.draw(st.integers(0, len(car) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    damaged = car[:at] + bytes([car[at] ^ bit]) + car[at + 1 :]
    with pytest.raises(BundleError):
        Bundle.from_car(damaged)


@given(st.integers(0, 900), st.binary(min_size=1, max_size=20))
def test_cut_and_extended_cars_are_refused(keep: int, tail: bytes) -> None:
    car = make().car()
    with pytest.raises(BundleError):
        Bundle.from_car(car[: min(keep, len(car) - 1)])
    with pytest.raises(BundleError):
        Bundle.from_car(car + tail)


@given(st.binary(max_size=300))
def test_random_bytes_are_no_car(data: bytes) -> None:
    with pytest.raises(BundleError):
        Bundle.from_car(data)


def _remove(path: Path) -> None:
    (path / "zk_proof.bin").unlink()


def _add(path: Path) -> None:
    (path / "notes.txt").write_text("hello")


def _link(path: Path) -> None:
    (path / "output_tensor").unlink()
    (path / "output_tensor").symlink_to("/etc/hostname")


def _folder(path: Path) -> None:
    (path / "output_tensor").unlink()
    (path / "output_tensor").mkdir()


@pytest.mark.parametrize("damage", [_remove, _add, _link, _folder])
def test_a_directory_that_is_not_exactly_a_bundle_is_refused(tmp_path: Path, damage: Any) -> None:
    make().write(tmp_path / "step")
    damage(tmp_path / "step")
    with pytest.raises(BundleError):
        Bundle.read(tmp_path / "step")


def test_a_missing_path_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        Bundle.read(tmp_path / "nothing")


def test_metadata_that_is_not_metadata_is_refused() -> None:
    for parse in (
        lambda: make().metadata,
        lambda: make().proof(),
        lambda: make().manifest,
        lambda: make().output(),
    ):
        with pytest.raises(BundleError, match="damaged"):
            parse()
