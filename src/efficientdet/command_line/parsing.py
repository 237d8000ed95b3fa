"""Parses words into the arguments of a command's function, using its signature and docstring."""

import inspect
import typing
from collections.abc import Callable
from typing import Annotated, Any

import tyro

from efficientdet.command_line import grammars
from efficientdet.errors import UsageError

# Prefix for the parameters that a grammar has read, since the function may have one of the same name.
_LISTED = "listed_"


def parse(
    function: Callable[..., Any], reading: grammars.Reading, program: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Parses words into the arguments of a function. Wrong usage and `--help` end the process.

    Args:
        function: a command's function; its parameters are the options.
        reading: the words, and what a grammar has already read.
        program: such as `efficientdet train`.

    Returns:
        Positional and keyword arguments.

    Raises:
        UsageError: a preset is given where the grammar does not read it.
    """

    def gather(*positional: Any, **named: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return positional, named

    parameters = _parameters(function, reading)
    gather.__doc__ = function.__doc__
    gather.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    gather.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    positional, named = tyro.cli(gather, args=reading.words, prog=program)
    num_positional = len(positional) - sum(listed.is_positional for listed in reading.listed)
    for word in positional[num_positional:]:
        if word is not None:
            raise UsageError(f"unexpected argument `{word}`; pass one preset, before any option.")
    return positional[:num_positional], {name: named[name] for name in named if not name.startswith(_LISTED)}


def _parameters(function: Callable[..., Any], reading: grammars.Reading) -> list[inspect.Parameter]:
    """Lists the parser's parameters: the function's own, those a grammar reads, and those with new defaults."""
    types = typing.get_type_hints(function, include_extras=True)
    own = [each.replace(annotation=types[each.name]) for each in inspect.signature(function).parameters.values()]
    asked = [parameter for parameter in own if parameter.name not in reading.defaults]
    given = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, default=reading.defaults[parameter.name])
        for parameter in own
        if parameter.name in reading.defaults
    ]
    return sorted([*asked, *map(_parameter, reading.listed), *given], key=lambda parameter: parameter.kind)


def _parameter(listed: grammars.Listed) -> inspect.Parameter:
    """Describes an argument that a grammar has read to the parser."""
    kind = inspect.Parameter.POSITIONAL_ONLY if listed.is_positional else inspect.Parameter.KEYWORD_ONLY
    shown = tyro.conf.arg(name=listed.name, metavar=listed.metavar or None, help=listed.text, help_behavior_hint="")
    annotation = (
        Annotated[str | None, shown] if listed.metavar else Annotated[bool, shown, tyro.conf.FlagCreatePairsOff]
    )
    return inspect.Parameter(
        _LISTED + listed.name, kind, default=None if listed.metavar else False, annotation=annotation
    )
