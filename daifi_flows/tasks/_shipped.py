"""What travels with the package beside its modules: the documentation and the example flows."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any, Literal

from daifi_flows.errors import ConfigError

__all__ = ["load_flow", "shipped"]

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped(what: Literal["docs", "flows"]) -> Path:
    """Folder of that name: inside an installed package, else beside it in a checkout.

    Raises:
        ConfigError: this installation does not have it.
    """
    for folder in (_PACKAGE / what, _PACKAGE.parent / what):
        if folder.is_dir():
            return folder
    raise ConfigError(f"this installation has no {what} folder: install the package again")


def load_flow(name: str) -> Any:
    """The flow called ``name`` from the shipped file ``flows/<name>.py``.

    The file is loaded by its path, so that no top-level package is called ``flows``.

    Raises:
        ConfigError: there is no such file.
    """
    path = shipped("flows") / f"{name}.py"
    module_name = f"daifi_flows_flow_{name}"
    if module_name not in sys.modules:
        if not name.isidentifier() or not path.is_file():
            known = ", ".join(sorted(file.stem for file in shipped("flows").glob("[!_]*.py")))
            raise ConfigError(f"there is no flow {name!r}; known: {known}")
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
    return getattr(sys.modules[module_name], name)
