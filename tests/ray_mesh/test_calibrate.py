"""``daifi calibrate`` on a tiny model: what it writes is used, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from daifi_flows.cli import app
from daifi_flows.errors import ConfigError, EngineError, ModelError
from daifi_flows.proofs.calibration import find_calibration, read_calibration
from daifi_flows.proofs.evidence import ACCEPT
from daifi_flows.ray_mesh import resolve
from daifi_flows.ray_mesh.calibrate import CalibrationReport, calibrate, read_prompts

PROMPTS = [{"messages": [{"role": "user", "content": f"What is word {i}?"}]} for i in range(24)]


@pytest.fixture(scope="module")
def report(tiny_model: Path, model_cache: Path) -> CalibrationReport:
    lines: list[str] = []
    found = calibrate(
        str(tiny_model),
        model_cache,
        precision="bf16",
        prompts=PROMPTS,
        tokens=48,
        note=lines.append,
    )
    assert len(lines) == len(found.runs) + 1
    return found


def test_honest_answers_are_valid_and_cheats_are_not(report: CalibrationReport) -> None:
    honest = [run for run in report.runs if run.honest]
    assert len(honest) == 4
    for run in honest:
        assert run.accepted == run.answers, run
        assert run.rejected == 0
        assert run.toploc_rejected == 0
        assert run.max_log_evidence < math.log(ACCEPT)
    assert sum(run.answers for run in honest) == report.calibration.generations
    assert sum(run.tokens for run in honest) == report.calibration.tokens
    cheats = {run.name: run for run in report.runs if not run.honest}
    for name in ("int4 in groups of 64", "half of the weights pruned", "another seed"):
        run = cheats[name]
        assert run.rejected >= 0.9 * run.answers, run
        assert run.tokens_to_catch is not None
        assert run.tokens_to_catch < 48
    assert cheats["another seed"].toploc_rejected == 0  # the activations are the model's
    assert cheats["int4 in groups of 64"].toploc_rejected == cheats["int4 in groups of 64"].answers


def test_the_calibration_says_what_it_is_of(report: CalibrationReport, tiny_model: Path) -> None:
    found = report.calibration
    assert found.digest == resolve(str(tiny_model), "transformers").ref.digest
    assert (found.precision, found.verifier_precision) == ("bf16", "bf16")
    assert found.activations is not None
    assert found.max_log_evidence < math.log(ACCEPT) / 2
    assert any(line.startswith("torch ") for line in found.made_with)
    assert json.loads(json.dumps(report.jsonable()))["calibration"]["model"] == str(tiny_model)


def test_the_command_writes_where_verifiers_look(tiny_model: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"What is word {i}?" for i in range(24)) + "\n\n")
    arguments = [
        "calibrate",
        str(tiny_model),
        *("--precision", "fp32", "--tokens", "48"),
        *("--prompts", str(prompts), "--home", str(tmp_path / "home")),
    ]
    result = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    said = json.loads(result.stdout)
    ref = resolve(str(tiny_model), "transformers", "fp32").ref
    found = find_calibration(ref, tmp_path / "home" / "calibrations")
    assert found is not None
    assert said["calibration"] == found.jsonable()
    assert read_calibration(Path(said["path"])) == found
    out = tmp_path / "elsewhere" / "cal.json"
    shown = CliRunner().invoke(app, [*arguments, "--out", str(out)], catch_exceptions=False)
    assert shown.exit_code == 0
    assert "int8 per channel" in shown.stdout
    assert read_calibration(out).digest == ref.digest


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"name": "nosuch"}, ModelError, "unknown"),
        ({"precision": "int3"}, ConfigError, "int3"),
        ({"verifier_precision": "int3"}, ConfigError, "int3"),
        ({"engine": "retrieval"}, ConfigError, "retrieval"),
        ({"tokens": 0}, ConfigError, "tokens is 0"),
        ({"tokens": 4}, ConfigError, "at least 1000 are needed"),
    ],
    ids=str,
)
def test_what_cannot_be_measured_is_said(
    options: dict[str, Any],
    error: type[Exception],
    words: str,
    tiny_model: Path,
    model_cache: Path,
) -> None:
    arguments: dict[str, Any] = {"name": str(tiny_model), "prompts": PROMPTS[:4], **options}
    with pytest.raises(error, match=words):
        calibrate(arguments.pop("name"), model_cache, **arguments)


def test_vllm_must_be_installed(
    tiny_model: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "vllm" else real(name)
    )
    with pytest.raises(EngineError, match="not installed"):
        calibrate(str(tiny_model), model_cache, prompts=PROMPTS[:4], tokens=4, engine="vllm")


def test_the_built_in_prompts_are_many_and_of_both_kinds() -> None:
    found = read_prompts()
    assert len(found) >= 60
    assert any("passages" in each for each in found)
    assert any(len(each.get("messages", [])) > 2 for each in found)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("none.json", None, "cannot be read"),
        ("bad.json", b"[", "cannot be read"),
        ("map.json", b"{}", "list of 1"),
        ("empty.json", b"[]", "list of 1"),
        ("empty.txt", b"\n\n", "list of 1"),
        ("entry.json", b"[7]", "prompt 0"),
        ("blank.json", b'["x", " "]', "prompt 1"),
        ("form.json", b'[{"question": 5}]', "prompt 0"),
        ("binary.txt", b"\xff\xfe", "cannot be read"),
        ("many.json", b"[" + b'"x",' * 10_000 + b'"x"]', "list of 1"),
        ("large.txt", b"x" * ((1 << 24) + 1), "over 16 MiB"),
    ],
)
def test_a_prompts_file_is_checked(
    name: str, data: bytes | None, words: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=words):
        read_prompts(path)
