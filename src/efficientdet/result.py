"""What a verb answers: shown to people on a console, or to programs as JSON."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


class Result:
    """A verb's answer; those of the verbs are dataclasses."""

    def to_dict(self) -> dict[str, Any]:
        """Turns the result into plain JSON values."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    def table(self) -> RenderableType | None:
        """Makes what is shown first, for rich; none: there is only text."""
        return None

    def text(self) -> str:
        """Says in lines what was done; empty: the table says it."""
        return ""

    def show(self, console: Console) -> None:
        """Shows the result to a person."""
        if (table := self.table()) is not None:
            console.print(table)
        if text := self.text():
            console.print(text, soft_wrap=True, markup=False)

    @property
    def is_shown(self) -> bool:
        """Whether it went to standard output line by line while the verb worked, so that nothing is left to show."""
        return False

    def failure(self) -> str:
        """Says why the command fails, after what was shown; empty: `status` alone decides."""
        return ""

    def status(self) -> int:
        """Says how the command ends: 0 success, 1 something that was asked for is missing."""
        return 0
