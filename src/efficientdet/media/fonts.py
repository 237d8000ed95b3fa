"""Finds fonts with the characters of a text: Pillow's own for ASCII, else matplotlib's DejaVu Sans, else a system font.

If no font has the characters of a name, it loses its accents if that helps, else it is shown as a number: a row of
empty boxes would be useless.
"""

import functools
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from PIL import ImageFont

_FANCY = (
    "bold",
    "italic",
    "oblique",
    "light",
    "thin",
    "black",
    "condensed",
    "mono",
    "serif",
)  # used only as a last resort


def load(text: str, size: int) -> ImageFont.FreeTypeFont:
    """Loads a font that has the characters of a text, or Pillow's own if there is none.

    Args:
        text: the text to draw.
        size: font size, px.
    """
    return _load(_find(frozenset(text)), size)


def show(names: Sequence[str], numbers: Sequence[int] | None = None) -> list[str]:
    """Rewrites names that no font can display.

    Args:
        names: any text.
        numbers: numbers to show instead of such names; None means their indices.

    Returns:
        Each name unchanged, without accents, or as `#3`.
    """
    shown = []
    for number, name in zip(range(len(names)) if numbers is None else numbers, names, strict=True):
        plain = "".join(part for part in unicodedata.normalize("NFKD", name) if not unicodedata.combining(part))
        shown.append(next((each for each in (name, plain) if _can_write(each)), f"#{number}"))
    return shown


def _can_write(text: str) -> bool:
    return bool(text.strip()) and (text.isascii() or _find(frozenset(text)) is not None)


@functools.lru_cache(maxsize=4096)
def _find(letters: frozenset[str]) -> Path | None:
    """Finds a font with non-ASCII characters; None if Pillow's own is enough or no font has them."""
    codes = {ord(letter) for letter in letters if letter.isprintable() and not letter.isspace()}
    if all(code < 128 for code in codes):
        return None
    return next((path for path in _candidates() if codes <= _codes(path)), None)


@functools.cache
def _candidates() -> tuple[Path, ...]:
    """Lists fonts: matplotlib's own, then those of the system, the plainest first."""
    from matplotlib import font_manager, get_data_path  # slow to import, and not needed for ASCII

    paths = [Path(name) for name in font_manager.findSystemFonts()]
    paths.sort(
        key=lambda path: (sum(word in path.name.lower() for word in _FANCY), "sans" not in path.name.lower(), path)
    )
    return Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf", *paths


@functools.cache
def _codes(path: Path) -> frozenset[int]:
    """Reads which characters a font has; empty if it cannot be read."""
    from matplotlib import ft2font

    try:
        return frozenset(ft2font.FT2Font(str(path)).get_charmap())
    except (RuntimeError, OSError):
        return frozenset()


@functools.lru_cache(maxsize=256)
def _load(path: Path | None, size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size) if path is None else ImageFont.truetype(str(path), size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font
