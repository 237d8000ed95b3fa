"""Signatures of the API reference without what is for the command line only: `Annotated[X, ...]` is shown as `X`.

MkDocs loads it as an extension of Griffe (mkdocs.yml).
"""

from typing import Any

import griffe


class PlainAnnotations(griffe.Extension):
    """Replaces `Annotated` in the parameters of functions."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Takes the type out of each annotation."""
        for parameter in func.parameters:
            annotation = parameter.annotation
            if isinstance(annotation, griffe.ExprSubscript) and annotation.canonical_name == "Annotated":
                elements = getattr(annotation.slice, "elements", None)
                parameter.annotation = elements[0] if elements else annotation
