"""Fonts that have the letters of a text: Pillow's own for ASCII, else matplotlib's DejaVu Sans, else the system's.

A name whose letters no font has loses its accents if that helps, else it is shown as a number: an empty box for each
letter would say nothing.
"""

import functools
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from PIL import ImageFont

_FANCY = ("bold", "italic", "oblique", "light", "thin", "black", "condensed", "mono", "serif")  # if there is no other


def load(text: str, size: int) -> ImageFont.FreeTypeFont:
    """Loads a font that has the letters of a text, or Pillow's own if there is none.

    Args:
        text: what will be written.
        size: px.
    """
    return _load(_find(frozenset(text)), size)


def show(names: Sequence[str], numbers: Sequence[int] | None = None) -> list[str]:
    """Writes names so that there are letters for them.

    Args:
        names: any text.
        numbers: that stand for names without letters; none: positions.

    Returns:
        Each name as it is, without its accents, or as `#3`.
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
    """Finds a font with letters beyond ASCII; none: Pillow's own is enough, or no font has them."""
    codes = {ord(letter) for letter in letters if letter.isprintable() and not letter.isspace()}
    if all(code < 128 for code in codes):
        return None
    return next((path for path in _candidates() if codes <= _codes(path)), None)


@functools.cache
def _candidates() -> tuple[Path, ...]:
    """Lists fonts: matplotlib's own, then those of the system, the plainest first."""
    from matplotlib import font_manager, get_data_path  # take a while, and ASCII needs no font but Pillow's

    paths = [Path(name) for name in font_manager.findSystemFonts()]
    paths.sort(
        key=lambda path: (sum(word in path.name.lower() for word in _FANCY), "sans" not in path.name.lower(), path)
    )
    return Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf", *paths


@functools.cache
def _codes(path: Path) -> frozenset[int]:
    """Reads which letters a font has; none of one that cannot be read."""
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
