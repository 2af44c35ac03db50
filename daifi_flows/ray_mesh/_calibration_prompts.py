"""The prompts a calibration is measured on: varied ones that ship here, or a user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, cast

from daifi_flows.encoding import parse_json
from daifi_flows.errors import ConfigError, EncodingError, EngineError
from daifi_flows.ray_mesh.engines._prompt import parse_llm_input

__all__ = ["CONTEXT", "read_prompts"]

CONTEXT: Final = 1024
"""Prompt and answer together, in tokens; longer prompts are trimmed as a step's are."""

_MAX_PROMPTS: Final = 10_000
_MAX_BYTES: Final = 1 << 24
_BUILT_IN: Final = Path(__file__).parent / "data" / "calibration-prompts.json"


def read_prompts(path: Path | None = None) -> list[dict[str, Any]]:
    """Prompts as LLM inputs (without ``context_tokens``): the built-in ones, or those of a file.

    A ``.json`` file holds a list of texts or of inputs as :func:`parse_llm_input` takes them; any
    other file holds a prompt a line.

    Raises:
        ConfigError: the file cannot be read, is too large, or an entry is no prompt.
    """
    path = path or _BUILT_IN
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ConfigError(f"prompts file {path} is over {_MAX_BYTES >> 20} MiB")
        entries: Any
        if path.suffix == ".json":
            entries = parse_json(data)
        else:
            entries = [line for line in data.decode().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError, EncodingError) as error:
        raise ConfigError(f"prompts file {path} cannot be read: {error}") from error
    if not isinstance(entries, list) or not 0 < len(cast("list[Any]", entries)) <= _MAX_PROMPTS:
        raise ConfigError(f"prompts file {path} must hold a list of 1 to {_MAX_PROMPTS} prompts")
    found: list[dict[str, Any]] = []
    for index, entry in enumerate(cast("list[Any]", entries)):
        value = {"messages": [{"role": "user", "content": entry}]} if type(entry) is str else entry
        try:
            parse_llm_input(
                {**value, "context_tokens": CONTEXT} if isinstance(value, dict) else value
            )
        except EngineError as error:
            raise ConfigError(f"prompt {index} of {path} is no prompt: {error}") from error
        found.append(cast("dict[str, Any]", value))
    return found
