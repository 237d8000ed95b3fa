"""Modules that wait: imported at once, loaded when something of them is asked for.

`efficientdet VERB --help` needs the signature and the docstring of a function, not what the function works with, and
loading that takes several times as long as the answer. A process that does nothing but explain a verb lets the modules
below wait. In any other one imports cost, and fail, where they stand. It pays because ours are imported as modules, not
by their names. `importlib.util.LazyLoader` loads a module at its second import already, NumPy twice.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_WAITING = ("efficientdet", "numpy", "PIL", "requests", "yaml")


class _Module(ModuleType):
    """A module whose own attributes are not there yet; what the import system asks for is."""

    def __getattr__(self, name: str) -> Any:
        self.__class__ = ModuleType  # type: ignore[assignment]
        assert self.__spec__ is not None, self.__name__
        assert self.__spec__.loader is not None, self.__name__
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


class _Loader(importlib.abc.Loader):
    """Leaves a module to the loader that it has, later."""

    def __init__(self, loader: importlib.abc.Loader):
        self.loader = loader

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None, module.__name__
        module.__spec__.loader = module.__loader__ = self.loader
        module.__class__ = _Module


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules that wait, where Python finds them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in _WAITING:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or not isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            return spec
        spec.loader = _Loader(spec.loader)
        return spec


def start() -> None:
    """Lets modules wait that are imported from now on, in a process that ends soon."""
    sys.meta_path.insert(0, _Finder())
