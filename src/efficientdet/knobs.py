"""Knobs: configuration fields that declare their range and whether a resumed run may change them; JSON conversion."""

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
"""Upper bound of most integer knobs."""


@dataclasses.dataclass(frozen=True)
class _Facts:
    """What a knob declares in addition to its type and default."""

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
    """Declares a configuration field.

    Args:
        default: default value.
        low: smallest valid value (of each number, for a tuple).
        high: largest valid value.
        above: values must be greater than this.
        below: values must be less than this.
        is_free: whether a resumed run may change it, because it affects output or speed but not what is learned.
    """
    return dataclasses.field(default=default, metadata={"knob": _Facts(low, high, above, below, is_free)})


def check_ranges(config: Any) -> None:
    """Raises a UserError for the first knob of a configuration that is out of range."""
    for name, facts, value in _declared(config):
        for number in value if isinstance(value, tuple) else (value,):
            if facts.is_bounded and number is not None and not facts.holds(number):
                raise UserError(f"`{name}` is {value}; it must be {facts.expected()}.")


def free(config: Any) -> set[str]:
    """Lists the dotted names of the knobs that a resumed run may change."""
    return {name for name, facts, _ in _declared(config) if facts.is_free}


def _declared(config: Any, prefix: str = "") -> Iterator[tuple[str, _Facts, Any]]:
    """Iterates over the knobs of a configuration and its sections."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _declared(value, f"{prefix}{field.name}.")
        elif "knob" in field.metadata:
            yield f"{prefix}{field.name}", field.metadata["knob"], value


def to_dict(config: Any) -> dict[str, Any]:
    """Converts a config to plain JSON values."""
    return dataclasses.asdict(config)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens the nested objects of `to_dict` into dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def from_dict(cls: type, values: Any, where: str) -> Any:
    """Rebuilds a config from JSON values; rejects unknown fields and values of the wrong type.

    Args:
        cls: a dataclass.
        values: the result of `to_dict`. Missing fields keep their defaults.
        where: file (and field) to name in an error.

    Raises:
        UserError: a field is unknown or its value has the wrong type.
    """
    if not isinstance(values, dict):
        raise UserError(f"`{where}` is {_short(values)}; expected a JSON object.")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        near = difflib.get_close_matches(unknown[0], hints, n=1)
        known = f"Did you mean `{near[0]}`?" if near else f"Choose from {', '.join(hints)}."
        raise UserError(f"`{where}` has an unknown field `{unknown[0]}`. {known}")
    return cls(**{name: _coerce(hints[name], value, f"{where}: {name}") for name, value in values.items()})


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """Converts one JSON value to the type `hint`, or raises."""
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
    """Formats a value of any size in at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
