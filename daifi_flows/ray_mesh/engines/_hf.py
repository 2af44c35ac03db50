"""Brings a Hugging Face causal LM into memory: folder, tokenizer, weights.

A GGUF file is dequantised once to a folder of safetensors (16 s become 0.1 s for SmolLM2), kept in
a cache under the model's digest and precision; the cached files are checked before they are used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import secrets
import shutil
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Final

from daifi_flows.encoding import parse_json
from daifi_flows.errors import EncodingError, ModelError
from daifi_flows.ray_mesh._models import LocalModel
from daifi_flows.ray_mesh.engines._loading import LOADING

__all__ = [
    "PRECISIONS",
    "HfTokenizer",
    "count_parameters",
    "hf_folder",
    "load_causal",
    "load_tokenizer",
    "torch_dtype",
]

PRECISIONS: Final = {"bf16": "bfloat16", "fp32": "float32", "fp16": "float16"}
"""Precision names of a ``ModelRef`` and torch's names."""

_RECORD: Final = "converted.json"


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """No progress bars or advice on the terminal while transformers loads."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def torch_dtype(precision: str) -> Any:
    """The torch dtype of a precision name.

    Raises:
        ModelError: no such precision.
    """
    import torch

    if precision not in PRECISIONS:
        raise ModelError(f"precision {precision!r} is unknown: use {', '.join(PRECISIONS)}")
    return getattr(torch, PRECISIONS[precision])


def hf_folder(model: LocalModel, cache: Path) -> Path:
    """The model as a folder in Hugging Face layout (safetensors), converting a GGUF once.

    Processes may call this at the same time: one converts, the others wait.

    Args:
        cache: folder of converted models; created when missing.

    Raises:
        ModelError: the GGUF cannot be read, or the cache cannot be written.
    """
    if not model.is_gguf:
        return model.location
    torch_dtype(model.ref.precision)
    target = cache / f"{model.ref.digest.hex()[:32]}-{model.ref.precision}"
    from filelock import FileLock

    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not _is_intact(target):
                shutil.rmtree(target, ignore_errors=True)
                _convert(model, target)
    except OSError as error:
        raise ModelError(f"the model cache {cache} cannot be used: {error}") from error
    return target


_checked: set[tuple[str, tuple[tuple[str, int, int], ...]]] = set()


def _is_intact(folder: Path) -> bool:
    """Whether every recorded file has its SHA-256; asked once per process and file state."""
    try:
        record = parse_json((folder / _RECORD).read_bytes())
        states = [(name, (folder / name).stat()) for name in sorted(record)]
    except (OSError, TypeError, ValueError, EncodingError):
        return False
    key = (str(folder), tuple((name, s.st_size, s.st_mtime_ns) for name, s in states))
    if key in _checked:
        return True
    for name, expected in record.items():
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                return False
    _checked.add(key)
    return True


def _convert(model: LocalModel, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    file = model.location
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with LOADING, _quiet(), torch.inference_mode():
            weights: Any = AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                dtype=torch_dtype(model.ref.precision),
                quantization_config=GgufConfig(dequantize=True),
                local_files_only=True,
            )
            # The saved folder holds plain weights: a quantisation entry would make loaders refuse.
            if hasattr(weights.config, "quantization_config"):
                del weights.config.quantization_config
            weights.hf_quantizer = None
            tokenizer = AutoTokenizer.from_pretrained(
                file.parent, gguf_file=file.name, local_files_only=True
            )
            draft.mkdir()
            weights.save_pretrained(draft)
            tokenizer.save_pretrained(draft)
        record = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(draft.iterdir())
        }
        (draft / _RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        draft.rename(target)
    except OSError:
        raise
    except Exception as error:
        raise ModelError(f"GGUF file {file.name} cannot be read as a model: {error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def count_parameters(folder: Path) -> int:
    """How many weights the folder's safetensors hold, from their headers alone.

    Raises:
        ModelError: a file is not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(file), framework="np") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a mapping
                    total += math.prod(tensors.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file.name} is not a safetensors file: {error}") from error
    return total


def load_causal(folder: Path, precision: str) -> Any:
    """The weights, in evaluation mode, on the GPU when torch has one.

    Raises:
        ModelError: the folder holds no causal language model that transformers knows.
    """
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch_dtype(precision)
    try:
        with LOADING, _quiet():
            weights: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True
            )
    except Exception as error:
        raise ModelError(
            f"folder {folder.name} cannot be loaded as a causal language model: {_line(error)}"
        ) from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return weights.to(device).eval()


def load_tokenizer(folder: Path) -> HfTokenizer:
    """The tokenizer and its chat template.

    Raises:
        ModelError: there is none, or it has no chat template.
    """
    from transformers import AutoTokenizer

    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ModelError(
            f"folder {folder.name} has no tokenizer that can be loaded: {_line(error)}"
        ) from error
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            f"the tokenizer in {folder.name} has no chat template: use an instruct model"
        )
    return HfTokenizer(tokenizer, _end_tokens(folder, tokenizer), _context(folder))


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(path.read_bytes())
    except (OSError, EncodingError):
        return {}
    return value if isinstance(value, dict) else {}


def _end_tokens(folder: Path, tokenizer: Any) -> frozenset[int]:
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        ends = _read_json(folder / name).get("eos_token_id")
        for end in ends if isinstance(ends, list) else [ends]:
            if type(end) is int:
                found.add(end)
    if isinstance(tokenizer.eos_token_id, int):
        found.add(tokenizer.eos_token_id)
    return frozenset(found)


def _context(folder: Path) -> int:
    config = _read_json(folder / "config.json")
    config = config.get("text_config", config)
    length = config.get("max_position_embeddings")
    return length if isinstance(length, int) and length > 0 else 1 << 30


class HfTokenizer:
    """A chat tokenizer in the shape trimming needs.

    Attributes:
        end_tokens: tokens that end a generation.
        context: the model's own limit, prompt and answer together, in tokens.
    """

    def __init__(self, tokenizer: Any, end_tokens: frozenset[int], context: int) -> None:
        self._tokenizer = tokenizer
        self.end_tokens = end_tokens
        self.context = context
        specials = {str(token) for token in tokenizer.all_special_tokens}
        specials |= {str(token) for token in tokenizer.get_added_vocab()}
        self._specials = sorted((token for token in specials if len(token) > 1), key=len)[::-1]

    def _plain(self, text: str) -> str:
        """Text in which no control token is spelt: a passage must not end a turn or begin one."""
        for token in self._specials:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def chat(self, messages: Sequence[dict[str, str]], opening: str) -> list[int]:
        """Tokens of the whole prompt, the assistant's turn begun with ``opening``."""
        plain = [{**message, "content": self._plain(message["content"])} for message in messages]
        try:
            tokens = self._tokenizer.apply_chat_template(
                plain, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except Exception as error:
            raise ModelError(f"the chat template refuses this conversation: {error}") from error
        return [int(token) for token in tokens] + (self.encode(opening) if opening else [])

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text, without any added."""
        tokens = self._tokenizer.encode(self._plain(text), add_special_tokens=False)
        return [int(token) for token in tokens]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        return str(
            self._tokenizer.decode(
                list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )
