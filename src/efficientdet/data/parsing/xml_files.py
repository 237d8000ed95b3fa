"""Reads XML annotation files, decoded as their declaration says.

Expat supports only UTF-8, UTF-16, ISO-8859-1 and ASCII; Python also knows GBK and other encodings that old tools write,
so the text is decoded here. Entities and other ways to exhaust memory are rejected (defusedxml).
"""

import codecs
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import defusedxml
import defusedxml.ElementTree

from efficientdet.data import sources
from efficientdet.errors import UserError

_DECLARED = re.compile(rb"""^\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    b"<\x00": "utf-16-le",
    b"\x00<": "utf-16-be",
}
# GB18030 is a superset of GB2312 and GBK, and tools declare the older ones for it.
_WIDER = {"gb2312": "gb18030", "gbk": "gb18030"}
_HEAD_BYTES = 4096


def parse(path: Path) -> ElementTree.Element:
    """Reads one XML file; strips namespaces from tags.

    Raises:
        UserError: it cannot be read, decoded or parsed.
    """
    text = _decode(sources.read_bytes(path), path)
    if text.lstrip().startswith("<?xml"):  # some scripts write an empty line before it, which XML does not allow
        text = text.lstrip()
    try:
        root: ElementTree.Element = defusedxml.ElementTree.fromstring(text)
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
        return root
    except (ElementTree.ParseError, defusedxml.DefusedXmlException, ValueError) as error:
        raise UserError(f"`{path}` is not valid XML and may be truncated: {' '.join(str(error).split())}.") from error


def root_tag(path: Path) -> str:
    """Reads the name of the root element from the first 4 KiB; empty if there is none."""
    if not path.is_file():
        return ""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES).replace(b"\x00", b"")
    except OSError:
        return ""
    found = re.search(rb"<([A-Za-z_][\w.:-]*)[\s/>]", head)
    return found[1].decode("ascii", "replace") if found else ""


def line_of(path: Path, tag: str, index: int) -> int:
    """Finds the line (from 1) where the element with a tag and an index (from 0) begins; 0 if there is none."""
    text = _decode(sources.read_bytes(path), path)
    starts = [match.start() for match in re.finditer(rf"<{tag}[\s/>]", text)]
    return text.count("\n", 0, starts[index]) + 1 if index < len(starts) else 0


def _decode(content: bytes, path: Path) -> str:
    """Decodes by the byte order mark, or else by the declaration, or else as UTF-8."""
    declared = _DECLARED.match(content[:200])
    encoding = declared[1].decode().lower() if declared else "utf-8"
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), encoding)
    try:
        return content.decode(_WIDER.get(encoding, encoding))
    except UnicodeDecodeError as error:
        raise UserError(
            f"`{path}` is not {encoding.upper()} text{', although it declares this encoding' if declared else ''}: "
            f"byte {error.start} cannot be decoded."
        ) from error
    except LookupError as error:
        raise UserError(f"`{path}` declares the unknown encoding `{encoding}`; save it as UTF-8.") from error
