"""Reads YAML with all scalars as text: a class called `no`, `007` or `12:30` is not false, seven or 750."""

from pathlib import Path
from typing import Any

import yaml

from efficientdet.data import sources
from efficientdet.errors import UserError

_ABSENT = ("", "null", "Null", "NULL", "~")


class _TextLoader(yaml.BaseLoader):
    """Reads every scalar as text, and rejects duplicate keys, of which YAML would use the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise yaml.constructor.ConstructorError(None, None, f"the key `{key}` appears twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


def load(path: Path) -> dict[str, Any]:
    """Reads a YAML file of fields; each value is text, a list or a mapping.

    Raises:
        UserError: it cannot be read, is malformed, or has no fields.
    """
    try:
        # BaseLoader creates only text, lists and mappings, no Python objects.
        document = yaml.load(sources.read_text(path), Loader=_TextLoader)
    except (yaml.YAMLError, RecursionError, TypeError) as error:
        raise UserError(f"`{path}` is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(document, dict):
        raise UserError(f"`{path}` has no fields; expected `names`, `train` and `val`.")
    return document


def is_absent(value: Any) -> bool:
    """Checks whether a field is missing, empty or null."""
    return value is None or value == [] or value in _ABSENT if not isinstance(value, dict) else not value
