"""Pages of the site that no file in docs/ holds, and links that leave docs/. MkDocs calls it as a hook (mkdocs.yml).

README.md and CHANGELOG.md become pages as they are. The reference is made from the package: the Python API from its
public names, the configuration from the fields of config.py, the command line from what `--help` prints. A link to a
file outside docs/, which works in the repository, becomes plain text, because the site does not have the file.
"""

import ast
import dataclasses
import inspect
import os
import posixpath
import re
import subprocess
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from efficientdet import knobs

ROOT = Path(__file__).resolve().parents[1]
_COPIES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^)\s]+)\)")
_IMAGE = re.compile(r"(?P<before>!\[[^\]]*\])\((?P<target>[^)\s]+)\)")
_FENCED = re.compile(r"(^```.*?^```[^\n]*$)", re.MULTILINE | re.DOTALL)
_FLOWCHART = re.compile(r"^```mermaid\n(.*?)^```[^\n]*$", re.MULTILINE | re.DOTALL)
_NODE = re.compile(r"(\w+)\[\"(.+?)\"\]")
_COLUMNS = 84  # of `--help`; as many fit beside the navigation


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated pages to those of docs/."""
    from mkdocs.structure.files import File

    pages = {page: (ROOT / name).read_text(encoding="utf-8") for name, page in _COPIES.items()}
    pages |= {
        "reference/api.md": api_page(),
        "reference/configuration.md": configuration_page(),
        "reference/command-line.md": command_line_page(),
        "images/icon.svg": (ROOT / "src/efficientdet/serving/page/icon.svg").read_text(encoding="utf-8"),
    }
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Makes the links of a page those of the site; one that shows its path shows the page's title."""
    markdown = _FLOWCHART.sub(lambda match: flowchart_text(match[1]), markdown)
    markdown = move_links(markdown, source_of(page.file.src_uri))
    titles = dict(_titles(config["nav"]))

    def rename(match: re.Match[str]) -> str:
        name = posixpath.basename(match["target"].partition("#")[0])
        is_path = match["text"] in (name, f"docs/{name}") and name in titles
        return f"[{titles[name]}]({match['target']})" if is_path else match[0]

    return _LINK.sub(rename, markdown)


def _titles(nav: Any) -> Iterator[tuple[str, str]]:
    """Lists the pages of the navigation with their titles."""
    for entry in nav:
        for title, inner in entry.items():
            if isinstance(inner, list):
                yield from _titles(inner)
            else:
                yield inner, title


def source_of(page: str) -> str:
    """Finds the file of the repository that a page is made from, relative to its root."""
    return next((name for name, copy in _COPIES.items() if copy == page), f"docs/{page}")


def move_links(markdown: str, source: str) -> str:
    """Rewrites links that are relative to a file of the repository.

    Args:
        markdown: text of the page.
        source: its file, relative to the root, such as README.md or docs/training.md.

    Returns:
        The same text; a link to a page leads to the page, one to a file that the site lacks is its text.
    """

    def move(match: re.Match[str]) -> str:
        target = move_target(match["target"], source)
        if match["target"] == target:
            return match[0]
        if "before" in match.groupdict():
            return f"{match['before']}({target})"
        return match["text"] if target is None else f"[{match['text']}]({target})"

    parts = _FENCED.split(markdown)
    return "".join(part if place % 2 else _LINK.sub(move, _IMAGE.sub(move, part)) for place, part in enumerate(parts))


def flowchart_text(source: str) -> str:
    """Writes a Mermaid flowchart as a list of its arrows: drawing it would take a script from elsewhere."""
    names = {node: re.sub(r"<br/?><i>(.+?)</i>", r" (`\1`)", text) for node, text in _NODE.findall(source)}
    arrows = (_NODE.sub(r"\1", line).strip().split(" --> ") for line in source.splitlines() if " --> " in line)
    rows = [f"- {' → '.join(names.get(node, node) for node in nodes)}" for nodes in arrows]
    return "\n".join(["What goes where:", "", *rows])


def move_target(target: str, source: str) -> str | None:
    """Finds where a link leads in the site; None for a file outside docs/."""
    path, hash_mark, anchor = target.partition("#")
    if not path or "://" in path or path.startswith("mailto:"):
        return target
    inside = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if inside in _COPIES:
        inside = f"docs/{_COPIES[inside]}"
    if not inside.startswith("docs/"):
        return None
    page = "docs/" + _COPIES[source] if source in _COPIES else source
    return posixpath.relpath(inside, posixpath.dirname(page)) + hash_mark + anchor


def api_page() -> str:
    """Writes the page of the public names; mkdocstrings puts their signatures and docstrings in."""
    import efficientdet

    names = efficientdet.__all__
    groups = {
        "Functions": [name for name in names if name.islower()],
        "Classes": [name for name in names if not name.islower() and not name.isupper()],
        "Values": [name for name in names if name.isupper()],
    }
    lines = [
        "# Python API",
        "",
        "These are the names of `import efficientdet`. Each verb of the [command line](command-line.md) is the",
        "function of the same name, and its options are that function's parameters. The fields of `config` are in",
        "[Configuration](configuration.md).",
    ]
    for title, members in groups.items():
        lines += ["", f"## {title}"]
        for name in members:
            lines += ["", f"::: efficientdet.{name}", "    options:", "      heading_level: 3"]
            if name.endswith("Config"):
                lines += ["      members: false"]
            if name.isupper():
                lines += ["      show_attribute_values: false"]
    return "\n".join(lines) + "\n"


def configuration_page() -> str:
    """Writes the page of every knob: name, type, default, range and what it does."""
    from efficientdet import config as configs

    texts = _field_texts(Path(inspect.getfile(configs)))
    lines = [
        "# Configuration",
        "",
        "Every knob of `train` and `preview`. On the command line `training.batch_size` is `--training.batch-size`;",
        "in Python it is a field of [`ExperimentConfig`](api.md#efficientdet.ExperimentConfig). Defaults are those of",
        "`d0`. Presets change some of them: `efficientdet train PRESET --help` shows the preset's own. A resumed run",
        "may change only the knobs marked *may change*.",
    ]
    for section, cls in _sections(configs.ExperimentConfig):
        lines += ["", f"## {section or 'The run'}", "", inspect.getdoc(cls) or ""]
        for field in dataclasses.fields(cls):
            if dataclasses.is_dataclass(field.type):
                continue
            name = f"{section}.{field.name}" if section else field.name
            facts = field.metadata.get("knob")
            remarks = [
                f"`{_type_text(field.type)}`",
                f"default `{field.default!r}`" if field.default != "" else "empty by default",
            ]
            if facts and facts.is_bounded:
                remarks.append(_range_text(facts))
            if facts and facts.is_free:
                remarks.append("*may change*")
            lines += [
                "",
                f"`{name}`{{ #{name} }}",
                f":   {', '.join(remarks)}",
                "",
                f"    {_escape(texts[cls.__name__, field.name])}",
            ]
    return "\n".join(lines) + "\n"


def _sections(cls: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Goes through a configuration and the sections in it."""
    yield prefix, cls
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if dataclasses.is_dataclass(field.type):
            yield from _sections(field.type, f"{prefix}.{field.name}" if prefix else field.name)  # type: ignore[arg-type]


def _type_text(kind: Any) -> str:
    """Writes a type as a reader of the configuration needs it: `sgd | adam | None`, `(int, int)`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return " | ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_type_text, arguments))
    if origin is tuple:
        return f"({', '.join('...' if each is Ellipsis else _type_text(each) for each in arguments)})"
    return "None" if kind is type(None) else str(kind.__name__)


def _range_text(facts: Any) -> str:
    """Writes the range of a knob; the largest whole number is no limit that anybody meets."""
    return re.sub(rf"between (.+) and {knobs.MANY:,}", r"at least \1", facts.expected())


def _field_texts(path: Path) -> dict[tuple[str, str], str]:
    """Reads the docstrings under the fields of the classes of a module: (class, field) -> text in one line."""
    texts = {}
    for cls in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(cls, ast.ClassDef):
            for field, below in zip(cls.body, cls.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                    text = ast.literal_eval(below.value)
                    texts[cls.name, ast.unparse(field.target)] = " ".join(text.split())
    return texts


def _escape(text: str) -> str:
    """Keeps `<preset>` from being read as HTML."""
    return text.replace("<", "&lt;")


def command_line_page() -> str:
    """Writes the page of every verb, as `--help` prints it."""
    from efficientdet import cli

    lines = ["# Command line", "", "What `efficientdet VERB --help` prints."]
    for words, text in read_helps(cli):
        lines += ["", f"## {' '.join(words)}", ""]
        kept = without_knobs(text)
        lines += ["```text", text.rstrip() if words == ["efficientdet"] else without_frames(kept), "```"]
        if kept != text.rstrip():
            lines += ["", "Every knob follows, `--section.knob`: see [Configuration](configuration.md)."]
    return "\n".join(lines) + "\n"


def read_helps(cli: Any) -> list[tuple[list[str], str]]:
    """Runs `--help` of every verb, all in one process that loads no framework."""
    verbs = [["efficientdet"]]
    for name, verb in cli.VERBS.items():
        verbs += [[name, inner] for inner in verb.verbs] if isinstance(verb, cli.Group) else [[name]]
    program = (
        "import contextlib, sys\n"
        "from efficientdet.command_line import deferral\n"
        "deferral.start()\n"
        "from efficientdet import cli\n"
        f"for words in {verbs!r}:\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        cli.main([*words[words[0] == 'efficientdet':], '--help'])\n"
        "    print('\\0', end='')\n"
    )
    environment = os.environ | {"COLUMNS": str(_COLUMNS), "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, text=True, capture_output=True, check=True)
    *texts, _ = done.stdout.split("\0")
    return list(zip(verbs, texts, strict=True))


def without_knobs(text: str) -> str:
    """Drops the boxes of the configuration's sections from a help text; its own page has them."""
    from efficientdet import config as configs

    sections = [section for section, _ in _sections(configs.ExperimentConfig) if section]
    titles = tuple(f"╭─ {section} options " for section in sections)
    kept, dropping = [], False
    for line in text.rstrip().splitlines():
        if line.startswith("╭─"):
            dropping = line.startswith(titles)
        if not dropping:
            kept.append(line)
    return "\n".join(kept)


def without_frames(text: str) -> str:
    """Writes the boxes of a help text as indented lists, and breaks long lines."""
    lines = []
    for line in text.splitlines():
        if title := re.match(r"╭─ (.+?) ─*╮$", line):
            lines += ["", f"{title[1]}:"]
        elif line.startswith("│"):
            lines.append(f"  {line.strip('│').strip(' ─') and line[2:].rstrip('│ ')}".rstrip())
        elif not line.startswith("╰"):
            indent = "      " if line.startswith((" ", "usage:")) else ""
            lines += textwrap.wrap(line, _COLUMNS, subsequent_indent=indent, break_on_hyphens=False) or [""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))
