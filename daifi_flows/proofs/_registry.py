"""The schemes by name: those of this package, and those that other packages register.

A third party adds a scheme with an entry point in its own ``pyproject.toml``::

    [project.entry-points."daifi_flows.proofs"]
    my-scheme = "my_package.proofs:MyScheme"

The entry point names a class (called without arguments) or a ready object. It cannot replace a
scheme of this package: what ``digest`` means must not depend on what else is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Final

from daifi_flows.errors import ProofError
from daifi_flows.proofs._scheme import Scheme

__all__ = ["DEFAULT_SCHEME", "ENTRY_POINT_GROUP", "get_scheme", "scheme_names"]

ENTRY_POINT_GROUP: Final = "daifi_flows.proofs"

_BUILT_IN: Final[Mapping[str, str]] = {
    "digest": "daifi_flows.proofs.digest:DigestScheme",
    "token-difr": "daifi_flows.proofs.token_difr:TokenDifrScheme",
    "toploc": "daifi_flows.proofs.toploc:ToplocScheme",
    "zk": "daifi_flows.proofs.zk:ZkScheme",
    "zk-slice": "daifi_flows.proofs.zk_slice:ZkSliceScheme",
}

DEFAULT_SCHEME: Final[Mapping[str, str]] = {
    "retrieve": "digest",
    "reason": "token-difr",
    "act": "zk",
    "function": "digest",
}
"""Scheme that a step of each kind gets when it names none."""


def scheme_names() -> tuple[str, ...]:
    """Names that :func:`get_scheme` knows, sorted."""
    external = {point.name for point in entry_points(group=ENTRY_POINT_GROUP)}
    return tuple(sorted(set(_BUILT_IN) | external))


@lru_cache(maxsize=64)
def get_scheme(name: str) -> Scheme:
    """The scheme called ``name``.

    Raises:
        ProofError: no scheme has that name, or the one registered cannot be loaded.

    >>> get_scheme("digest").name
    'digest'
    """
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        return _instance(name, getattr(import_module(module), attribute))
    for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        try:
            loaded = point.load()
        except Exception as error:
            raise ProofError(
                f"proof scheme {name!r} is registered as {point.value} but cannot be loaded: "
                f"{error}"
            ) from error
        return _instance(name, loaded)
    known = ", ".join(scheme_names())
    raise ProofError(f"there is no proof scheme {name!r}; known: {known}")


def _instance(name: str, loaded: Any) -> Scheme:
    scheme = loaded() if isinstance(loaded, type) else loaded
    if getattr(scheme, "name", None) != name:
        raise ProofError(f"the object registered as proof scheme {name!r} has another name")
    return scheme
