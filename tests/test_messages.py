"""scripts/messages.py finds what a user may see, and shows it readably."""

import pathlib
import runpy

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_MESSAGES = runpy.run_path(str(_ROOT / "scripts" / "messages.py"))


@pytest.fixture(scope="module")
def found():
    return list(_MESSAGES["find_all"]())


# Fragments, since it is not this file's business how a message is worded.
@pytest.mark.parametrize(
    ("file", "kind", "fragment"),
    [
        ("cli.py", "error", "command `{' '.join(path[1:])}`"),
        ("cli.py", "output", "interrupted"),
        ("cli.py", "help", "anchors of a preset"),
        ("config.py", "help", "BiFPN cells"),
        ("knobs.py", "error", "`{name}` is {value}"),
        ("knobs.py", "part", "above {self.above}"),
        ("serving/admission.py", "help", "MB"),
    ],
)
def test_a_known_message_is_found(found, file, kind, fragment):
    here = [message for message in found if message.file == f"src/efficientdet/{file}"]
    assert [message for message in here if message.kind == kind and fragment in message.text]


def test_every_verb_and_every_knob_is_found(found):
    help_texts = [message for message in found if message.kind == "help"]
    assert len([message for message in help_texts if message.file.endswith("config.py")]) > 80
    assert any(message.text.startswith("Converts ") for message in help_texts)


def test_a_message_is_in_one_line_and_is_found_once(found):
    assert not [message for message in found if "\n" in message.text]
    assert len(found) == len(set(found))


def test_messages_of_each_kind_are_told_apart():
    source = '''
"""Docstring of a module."""
def f(name):
    """Docstring of a function."""
    if not name:
        raise UserError(f"`name` is {name!r}; "
                        "expected a word.")
    say("one step", style="dim")
    log({"epoch": 1})
    return f"the end of {name.strip()} is near"
key = {"field_name": "x"}
'''
    found = [(message.line, message.kind, message.text) for message in _MESSAGES["find"](source, "a.py")]
    assert found == [
        (6, "error", "`name` is {name}; expected a word."),
        (8, "output", "one step"),
        (10, "part", "the end of {name.strip()} is near"),
    ]


def test_the_docstring_of_a_verb_is_help():
    source = 'def train():\n    """Trains.\n\n    Args:\n        a: b.\n    """\n'
    (message,) = _MESSAGES["find"](source, "a.py", {"train"})
    assert (message.kind, message.text) == ("help", "Trains. Args: a: b. ")
