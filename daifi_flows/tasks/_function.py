"""A user's function as a step: what it is called with, and the digest of its source."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, Final

from daifi_flows.cnft import ModelFile, ModelRef, model_digest
from daifi_flows.encoding import canonical_json, sha256
from daifi_flows.errors import ConfigError, EncodingError

__all__ = ["bind", "check_function", "function_model"]

_PASSED_BY_NAME: Final = (
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
    inspect.Parameter.VAR_KEYWORD,
)


def check_function(function: Callable[..., Any]) -> None:
    """Refuse what a node could not call by argument name.

    Raises:
        ConfigError: not a Python function with source, a generator, or ``*args``.
    """
    name = getattr(function, "__qualname__", repr(function))
    if not inspect.isfunction(function):
        raise ConfigError(f"{name} is not a Python function: a step is a plain typed function")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(f"step {name!r} yields: return a list instead, so that it can be hashed")
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in _PASSED_BY_NAME:
            raise ConfigError(
                f"step {name!r} takes {parameter}: arguments go to a node by name, so take a "
                "list, or drop the /"
            )


def bind(
    step: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments by parameter name, defaults included, each checked to be JSON.

    Raises:
        ConfigError: an argument is missing, unknown, or not JSON; says which.
    """
    signature = inspect.signature(function)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ConfigError(f"step {step!r} cannot be called like this: {error}") from error
    bound.apply_defaults()
    values: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            values.update(value)
        else:
            values[name] = value
    for name, value in values.items():
        try:
            canonical_json(value)
        except EncodingError as error:
            raise ConfigError(
                f"argument {name!r} of step {step!r} is a {type(value).__name__} that cannot go "
                "to a node: pass text, finite numbers, lists, dictionaries or the cNFT of "
                f"another step ({error})",
                argument=name,
            ) from error
    return values


def function_model(function: Callable[..., Any]) -> tuple[ModelRef, bytes]:
    """The function as a model, and the source its digest is over.

    The source travels with the step: to a node that does not have the file, and into the bundle,
    where an auditor reads what was run.

    Raises:
        ConfigError: Python has no source for it (typed at a prompt, or built by ``exec``).
    """
    name = f"{function.__module__}:{function.__qualname__}"
    try:
        source = textwrap.dedent(inspect.getsource(function)).encode()
    except (OSError, TypeError) as error:
        raise ConfigError(
            f"the source of {name} cannot be read, so nobody could re-execute it: put the "
            "function into a file"
        ) from error
    files = (ModelFile(path=name, size=len(source), sha256=sha256(source)),)
    ref = ModelRef(name=name, digest=model_digest(files), engine="function", precision="exact")
    return ref, source
