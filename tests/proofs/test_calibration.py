"""Calibration files: canonical, strict, found by digest and precision."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from daifi_flows.cnft import ModelRef
from daifi_flows.encoding import canonical_json
from daifi_flows.errors import ModelError
from daifi_flows.proofs import calibration as module
from daifi_flows.proofs.calibration import (
    ActivationBounds,
    Calibration,
    Rounding,
    find_calibration,
    read_calibration,
    write_calibration,
)

REF = ModelRef(name="m", digest=bytes(range(32)), engine="transformers", precision="bf16")
FOUND = Calibration(
    model="m",
    digest=REF.digest,
    precision="bf16",
    verifier_precision="bf16",
    rounding=Rounding(scales=(0.01, 0.2), weights=(0.75, 0.25)),
    activations=ActivationBounds(
        min_exponent_matches=90,
        max_mean_error=10.0,
        max_median_error=8.0,
        mean_error=1.5,
        answer_spread=0.1,
        chunk_spread=0.2,
    ),
    generations=60,
    tokens=5_000,
    max_log_evidence=0.5,
    made_with=("torch 2.13.0", "x86_64 CPU"),
)


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "folder" / FOUND.file_name
    write_calibration(FOUND, path)
    assert read_calibration(path) == FOUND
    assert find_calibration(REF, path.parent) == FOUND
    assert [file.name for file in path.parent.iterdir()] == [FOUND.file_name]
    bare = FOUND.model_copy(update={"activations": None})
    write_calibration(bare, path)
    assert read_calibration(path) == bare
    assert find_calibration(REF, path.parent) == bare  # a new file is read again


def test_other_digests_and_precisions_have_no_calibration(tmp_path: Path) -> None:
    write_calibration(FOUND, tmp_path / FOUND.file_name)
    assert find_calibration(REF, None) is None
    assert find_calibration(REF, tmp_path / "none") is None
    for change in (
        {"digest": bytes(32)},
        {"precision": "fp32"},
        {"precision": "../bf16"},
        {"precision": "x\0"},
        {"precision": "p" * 256},
    ):
        assert find_calibration(REF.model_copy(update=change), tmp_path) is None


def test_one_verified_in_another_precision_is_kept_apart(tmp_path: Path) -> None:
    other = FOUND.model_copy(update={"verifier_precision": "fp32"})
    assert other.file_name != FOUND.file_name
    write_calibration(other, tmp_path / other.file_name)
    assert find_calibration(REF, tmp_path) is None
    write_calibration(other, tmp_path / FOUND.file_name)
    with pytest.raises(ModelError, match="another model or precision"):
        find_calibration(REF, tmp_path)


def changed(**update: Any) -> bytes:
    value = json.loads(FOUND.encode())
    for key, new in update.items():
        if new is None:
            del value[key]
        else:
            value[key] = new
    return canonical_json(value)


def rounding(scales: Any, weights: Any) -> bytes:
    return changed(rounding={"scales": scales, "weights": weights})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"null",
        b"[]",
        FOUND.encode()[:-1],
        FOUND.encode() + b"\n",
        b" " + FOUND.encode(),
        FOUND.encode().replace(b"0.75", b"0.750"),
        FOUND.encode().replace(b"0.75", b"NaN"),
        FOUND.encode().replace(b"0.75", b"1e400"),
        b"[" * 100_000,
        b"\xff" * 100,
        b'"' + b"x" * 20_000 + b'"',
        changed(format="daifi-calibration/2"),
        changed(format=None),
        changed(extra=1),
        changed(tokens=None),
        changed(tokens=-1),
        changed(tokens=1.5),
        changed(digest="0x00"),
        changed(made_with=["x"] * 17),
        rounding([], []),
        rounding([0.1], [0.5]),
        rounding([0.2, 0.1], [0.5, 0.5]),
        rounding([0.1, 0.1], [0.5, 0.5]),
        rounding([0.1, 0.2], [1.0]),
        rounding([0.0], [1.0]),
        rounding([-0.1], [1.0]),
        rounding([1e9], [1.0]),
        rounding([0.1, 0.2], [1.5, -0.5]),
        rounding([0.1], [1]),
        rounding([str(0.1)], [1.0]),
        rounding([0.001 * k for k in range(1, 100)], [1 / 99] * 99),
    ],
)
def test_anything_else_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / FOUND.file_name
    path.write_bytes(data)
    with pytest.raises(ModelError, match="daifi calibrate"):
        read_calibration(path)
    with pytest.raises(ModelError):
        find_calibration(REF, tmp_path)


@given(
    st.binary(max_size=300)
    | st.integers(0, len(FOUND.encode()) - 1).map(lambda cut: FOUND.encode()[:cut])
)
def test_random_and_cut_files_are_refused(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.json"
        path.write_bytes(data)
        with pytest.raises(ModelError):
            read_calibration(path)


def test_a_missing_or_unwritable_place_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be used"):
        read_calibration(tmp_path / "none.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot be written"):
        write_calibration(FOUND, tmp_path / "file" / "below.json")


def test_a_rounding_is_a_mixture() -> None:
    with pytest.raises(ValidationError, match="sum to 1"):
        Rounding(scales=(0.1, 0.2), weights=(0.5, 0.4))


def test_every_shipped_calibration_can_be_used() -> None:
    files = sorted(module._SHIPPED.glob("*.json"))
    assert {read_calibration(file).precision for file in files} >= {"bf16", "fp32"}
    for file in files:
        found = read_calibration(file)
        assert file.name == found.file_name
        assert found.activations is not None
        assert found.tokens >= 1_000
        ref = REF.model_copy(update={"digest": found.digest, "precision": found.precision})
        assert find_calibration(ref) == found
