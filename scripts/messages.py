"""Prints every text in src/ that a user may see, one a line: `file:line: kind: text`. For proofreading.

    python scripts/messages.py                  all of them
    python scripts/messages.py error warning    these kinds only

Kinds: `error` (raised), `warning` (logged or warned), `output` (printed, labels of progress), `help` (docstrings of
verbs and knobs, and what a command line adds), `log` (of a run), and `part`, any other string that looks like words,
because many messages are put together from several. An f-string's values are shown as `{name}`. Docstrings that no
`--help` shows, comments and the names of fields are not messages.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
_SOURCE = ROOT / "src"
KINDS = ("error", "warning", "output", "log", "help", "part")
# Called by these names, a function shows its text to a user.
_CALLS = {
    **dict.fromkeys(("refuse", "fail", "Refusal", "Problem", "problem", "report", "exit"), "error"),
    **dict.fromkeys(("warn", "warning"), "warning"),
    **dict.fromkeys(("print", "say", "track", "note", "add_column"), "output"),
    **dict.fromkeys(("Listed", "Verb", "Group", "arg"), "help"),
    "log": "log",
}

_OF_KNOBS = ("efficientdet/config.py", "serving/admission.py")  # their classes are options of a verb
_STYLE = {"end", "justify", "style", "title_justify"}


class Message(NamedTuple):
    """A text that a user may see."""

    file: str
    line: int
    kind: str
    text: str


def main() -> None:
    """Prints the messages of the package."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"some of {', '.join(KINDS)}; all if left out")
    wanted = parser.parse_args().kinds
    if unknown := set(wanted) - set(KINDS):
        parser.error(f"unknown kind {', '.join(sorted(unknown))}; choose from {', '.join(KINDS)}")
    for message in find_all():
        if not wanted or message.kind in wanted:
            print(f"{message.file}:{message.line}: {message.kind}: {message.text}")


def find_all() -> Iterator[Message]:
    """Finds the messages of every module."""
    verbs = set(_verbs(ast.parse((_SOURCE / "efficientdet" / "cli.py").read_text(encoding="utf-8"))))
    for path in sorted(_SOURCE.rglob("*.py")):
        module = path.relative_to(_SOURCE).with_suffix("").as_posix().replace("/", ".")
        shown = {function for home, function in verbs if home == module}
        yield from find(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix(), shown)


def find(source: str, file: str, verbs: set[str] = frozenset()) -> list[Message]:  # type: ignore[assignment]
    """Finds the messages of a module, in the order of its lines.

    Args:
        source: of the module.
        file: what to call it.
        verbs: functions whose docstrings are help texts.
    """
    tree = ast.parse(source)
    messages: dict[int, Message] = {}  # by node, so that an inner call does not repeat an outer one's text
    silent: set[int] = set()  # strings that are docstrings
    for node in ast.walk(tree):
        for text in _docstrings(node):
            silent.add(id(text))
            if _is_help(node, verbs, file):
                messages[id(text)] = Message(file, text.lineno, "help", _text(text))
    for node in ast.walk(tree):
        kind = _kind(node)
        for text in _strings(node) if kind else ():
            if id(text) not in silent and id(text) not in messages and _is_said(text):
                messages[id(text)] = Message(file, text.lineno, kind, _text(text))
    used = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        is_new = id(node) not in silent and id(node) not in messages
        # What is inside of an f-string is shown with it.
        if is_new and (isinstance(node, ast.JoinedStr) or id(node) not in used) and _is_words(node):
            messages[id(node)] = Message(file, node.lineno, "part", _text(node))
    return sorted(dict.fromkeys(messages.values()), key=lambda message: message.line)


def _verbs(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Reads module and function of each verb out of the table in cli.py."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Verb":
            home, function = (ast.literal_eval(argument) for argument in node.args[:2])
            yield home, function


def _docstrings(node: ast.AST) -> Iterator[ast.Constant]:
    """Lists the strings that stand alone in a module, class or function: docstrings, also those under fields."""
    for statement in getattr(node, "body", []) if not isinstance(node, ast.Lambda | ast.IfExp) else []:
        value = statement.value if isinstance(statement, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield value


def _is_help(node: ast.AST, verbs: set[str], file: str) -> bool:
    """Says whether `--help` shows the docstrings in a node: a verb's, and those of the knobs."""
    is_verb = isinstance(node, ast.FunctionDef) and node.name in verbs
    return is_verb or (isinstance(node, ast.ClassDef) and file.endswith(_OF_KNOBS))


def _kind(node: ast.AST) -> str | None:
    """Says what kind of message a call shows; None if it shows none."""
    if not isinstance(node, ast.Call):
        return None
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name.endswith("Error"):
        return "error"
    is_math = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) in ("math", "np", "ops", "tf.math")
    return None if is_math else _CALLS.get(name)


def _strings(call: ast.AST) -> Iterator[ast.Constant | ast.JoinedStr]:
    """Lists the strings and f-strings in the arguments of a call, but for those inside of an f-string."""
    assert isinstance(call, ast.Call)
    waiting: list[ast.AST] = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg not in _STYLE)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            yield node
        elif isinstance(node, ast.Dict):  # its keys are names of fields
            waiting.extend(node.values)
        elif not isinstance(node, ast.Call) or isinstance(node.func, ast.Attribute):
            waiting.extend(ast.iter_child_nodes(node))


def _text(node: ast.AST) -> str:
    """Writes a string in one line, an f-string's values in braces."""
    if isinstance(node, ast.JoinedStr):
        parts = (
            f"{{{ast.unparse(part.value)}}}" if isinstance(part, ast.FormattedValue) else _text(part)
            for part in node.values
        )
        return "".join(parts)
    assert isinstance(node, ast.Constant)
    return re.sub(r"\s+", " ", node.value)


def _is_said(node: ast.AST) -> bool:
    """Says whether a string in a call that shows text is text, not a key or a format."""
    if isinstance(node, ast.JoinedStr):
        return True
    text = node.value if isinstance(node, ast.Constant) else ""
    is_name = re.fullmatch(r"[\w-]+([._][\w-]+)+", text) is not None
    return any(map(str.isalpha, text)) and not is_name


def _is_words(node: ast.AST) -> bool:
    """Says whether a string anywhere reads like words: three of them, or one next to a value."""
    if isinstance(node, ast.JoinedStr):
        words = " ".join(part.value for part in node.values if isinstance(part, ast.Constant)).split()
        return len(node.values) > 1 and any(word.strip("`.,;:()'").isalpha() for word in words)
    if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
        return False
    return sum(word.strip("`.,;:()'").isalpha() for word in node.value.split()) >= 3


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stderr.close()
