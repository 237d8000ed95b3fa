"""The result of a command: printed on a console for people, or as JSON for programs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


class Result:
    """The result of a command; subclasses are dataclasses."""

    def to_dict(self) -> dict[str, Any]:
        """Converts the result to plain JSON values."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    def table(self) -> RenderableType | None:
        """Returns the rich table that is shown first; None if there is only text."""
        return None

    def text(self) -> str:
        """Describes the result in lines of text; empty if the table says it all."""
        return ""

    def show(self, console: Console) -> None:
        """Prints the result for people."""
        if (table := self.table()) is not None:
            console.print(table)
        if text := self.text():
            console.print(text, soft_wrap=True, markup=False)

    @property
    def is_shown(self) -> bool:
        """Whether the command already printed the result line by line to standard output."""
        return False

    def failure(self) -> str:
        """Says why the command fails, printed after the result; empty if `status` alone decides."""
        return ""

    def status(self) -> int:
        """Returns the exit status: 0 for success, 1 if something that was requested is missing."""
        return 0
