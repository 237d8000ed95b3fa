"""Knobs: fields of a configuration that say their range and whether a resumed run may change them; to JSON and back."""

import dataclasses
import difflib
import math
import numbers
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from efficientdet.errors import UserError

MANY = 2**31 - 1
"""The largest of most whole numbers."""


@dataclasses.dataclass(frozen=True)
class _Facts:
    """What a knob declares beside its type and default."""

    low: float
    high: float
    above: float
    below: float
    is_free: bool

    @property
    def is_bounded(self) -> bool:
        return (self.low, self.above, self.high, self.below) != (-math.inf, -math.inf, math.inf, math.inf)

    def holds(self, value: Any) -> bool:
        is_number = isinstance(value, numbers.Real)  # NumPy's are too
        return is_number and self.low <= value <= self.high and self.above < value < self.below

    def expected(self) -> str:
        low = f"above {self.above:g}" if self.above > -math.inf else f"at least {self.low:,.12g}"
        if self.below < math.inf:
            return f"{low} and below {self.below:g}"
        if self.high == math.inf:
            return low
        if self.above > -math.inf:
            return f"{low} and at most {self.high:,.12g}"
        return f"between {self.low:,.12g} and {self.high:,.12g}"


def knob(
    default: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: float = -math.inf,
    below: float = math.inf,
    is_free: bool = False,
) -> Any:
    """Declares a field of a configuration.

    Args:
        default: its value.
        low: smallest value that works, of each number in it.
        high: largest one.
        above: values must be larger.
        below: values must be smaller.
        is_free: a resumed run may change it: it changes what is written or how fast, not what is learnt.
    """
    return dataclasses.field(default=default, metadata={"knob": _Facts(low, high, above, below, is_free)})


def check_ranges(config: Any) -> None:
    """Raises a UserError that names the first knob of a configuration that is out of its range."""
    for name, facts, value in _declared(config):
        for number in value if isinstance(value, tuple) else (value,):
            if facts.is_bounded and number is not None and not facts.holds(number):
                raise UserError(f"`{name}` is {value}; it must be {facts.expected()}.")


def free(config: Any) -> set[str]:
    """Lists the dotted names of the knobs that a resumed run may change."""
    return {name for name, facts, _ in _declared(config) if facts.is_free}


def _declared(config: Any, prefix: str = "") -> Iterator[tuple[str, _Facts, Any]]:
    """Goes through the knobs of a configuration and its sections."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _declared(value, f"{prefix}{field.name}.")
        elif "knob" in field.metadata:
            yield f"{prefix}{field.name}", field.metadata["knob"], value


def to_dict(config: Any) -> dict[str, Any]:
    """Turns a config into plain JSON values."""
    return dataclasses.asdict(config)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turns the nested objects of `to_dict` into dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def from_dict(cls: type, values: Any, where: str) -> Any:
    """Rebuilds a config from JSON values; nothing unknown or of another type passes.

    Args:
        cls: a dataclass.
        values: what `to_dict` gave. A missing field keeps its default.
        where: file (and field) to name in an error.

    Raises:
        UserError: a field is unknown or its value has another type.
    """
    if not isinstance(values, dict):
        raise UserError(f"`{where}` is {_short(values)}; expected an object with fields.")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        near = difflib.get_close_matches(unknown[0], hints, n=1)
        known = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(hints)}."
        raise UserError(f"`{where}` has the unknown field `{unknown[0]}`; {known}")
    return cls(**{name: _coerce(hints[name], value, f"{where}: {name}") for name, value in values.items()})


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """Turns one JSON value into the type `hint` or raises."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    if origin is Literal:
        if value in arguments:
            return value
        raise UserError(f"`{where}` is {_short(value)}; expected one of {', '.join(map(repr, arguments))}.")
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _coerce(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple and isinstance(value, list | tuple):
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(inner) == len(value):
            return tuple(_coerce(h, v, where) for h, v in zip(inner, value, strict=True))
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(hint, type) and type(value) is hint:
        return value
    raise UserError(f"`{where}` is {_short(value)}; expected {getattr(hint, '__name__', hint)}.")


def _short(value: Any) -> str:
    """Writes a value of unknown size in at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
