"""Deferred modules: imported immediately, executed when one of their attributes is first used.

`efficientdet COMMAND --help` needs a function's signature and docstring, not its dependencies, and loading those takes
several times as long as printing the help. So a process that only prints help defers the modules below; in any other
process imports run, and fail, where they are written. This works because our code imports modules, not their names.
`importlib.util.LazyLoader` isn't enough: it loads a module on its second import, and NumPy twice.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_WAITING = ("efficientdet", "numpy", "PIL", "requests", "yaml")


class _Module(ModuleType):
    """A module that has the import system's attributes but hasn't been executed yet."""

    def __getattr__(self, name: str) -> Any:
        self.__class__ = ModuleType  # type: ignore[assignment]
        assert self.__spec__ is not None, self.__name__
        assert self.__spec__.loader is not None, self.__name__
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


class _Loader(importlib.abc.Loader):
    """Hands a module to its real loader on first use."""

    def __init__(self, loader: importlib.abc.Loader):
        self.loader = loader

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None, module.__name__
        module.__spec__.loader = module.__loader__ = self.loader
        module.__class__ = _Module


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the deferred modules on Python's normal path."""

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
    """Defers modules imported from now on; meant for a process that exits soon."""
    sys.meta_path.insert(0, _Finder())
