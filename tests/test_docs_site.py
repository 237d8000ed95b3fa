"""The documents' links hold, in the repository and in the site; the site builds without a warning.

The links are checked without MkDocs; building needs the extra `docs`.
"""

import importlib.util
import os
import pathlib
import re
import runpy
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PAGES = runpy.run_path(str(_ROOT / "scripts" / "docs_pages.py"))
_DOCUMENTS = [_ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
_DOCUMENTS += sorted((_ROOT / "docs").glob("*.md"))


def _prose(text):
    """Drops fenced code, which may hold what looks like a link or a heading."""
    return re.sub(r"^```.*?^```[^\n]*$", "", text, flags=re.MULTILINE | re.DOTALL)


def _links(text):
    """Lists the targets of links and images that lead to files or headings here."""
    targets = re.findall(r"\]\(([^)\s]+)\)", _prose(text))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def _anchors(text):
    """Lists the anchors of headings, as GitHub writes them: a second heading of the same text ends with -1."""
    anchors = []
    for heading in re.findall(r"^#+ +(.+?) *$", _prose(text), re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        count = sum(re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", other) is not None for other in anchors)
        anchors.append(f"{anchor}-{count}" if count else anchor)
    return anchors


def _broken(path):
    """Lists the links of a document that lead nowhere."""
    text = path.read_text(encoding="utf-8")
    broken = []
    for target in _links(text):
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        is_here = file.exists() and file.is_relative_to(_ROOT)
        if not is_here or (anchor and anchor not in _anchors(file.read_text(encoding="utf-8"))):
            broken.append(target)
    return broken


@pytest.mark.parametrize("path", _DOCUMENTS, ids=lambda path: path.name)
def test_every_link_and_every_anchor_of_a_document_leads_somewhere(path):
    assert _broken(path) == []


def test_a_link_and_an_anchor_that_lead_nowhere_are_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "_ROOT", tmp_path)
    (tmp_path / "b.md").write_text("# B\n\n## What `x` does, and why\n\n## What `x` does, and why\n")
    (tmp_path / "a.md").write_text(
        "[good](b.md) [good](b.md#what-x-does-and-why) [good](b.md#what-x-does-and-why-1) [far](https://a.example/#b)\n"
        "[bad](c.md) [bad](b.md#what-x-does) [bad](#here) ![bad](d.png)\n```\n[code](e.md)\n```\n"
    )
    assert _broken(tmp_path / "a.md") == ["c.md", "b.md#what-x-does", "#here", "d.png"]


@pytest.mark.parametrize(
    ("target", "source", "moved"),
    [
        ("docs/data.md", "README.md", "data.md"),
        ("docs/data.md#options", "CHANGELOG.md", "data.md#options"),
        ("docs/images/demo.jpg", "README.md", "images/demo.jpg"),
        ("training.md", "docs/data.md", "training.md"),
        ("../README.md#the-tree", "docs/architecture.md", "index.md#the-tree"),
        ("../src/efficientdet/boxes.py", "docs/architecture.md", None),
        ("examples/detect.py", "README.md", None),
        ("https://a.example/b", "README.md", "https://a.example/b"),
        ("#here", "docs/data.md", "#here"),
    ],
)
def test_a_link_of_the_repository_becomes_one_of_the_site(target, source, moved):
    assert _PAGES["move_target"](target, source) == moved


def test_a_link_to_a_file_that_the_site_lacks_becomes_its_text_and_code_stays():
    text = "See [`boxes.py`](../src/efficientdet/boxes.py).\n```\n[a](../b.py)\n```\n"
    assert _PAGES["move_links"](text, "docs/data.md") == "See `boxes.py`.\n```\n[a](../b.py)\n```\n"


def test_a_flowchart_becomes_a_list_of_its_arrows():
    chart = 'flowchart LR\n  a["images<br/><i>data</i>"] --> b["boxes"]\n  b --> c["AP"]\n'
    assert _PAGES["flowchart_text"](chart) == "What goes where:\n\n- images (`data`) → boxes\n- boxes → AP"


def test_the_page_of_the_configuration_has_every_knob():
    from efficientdet import config, knobs

    page = _PAGES["configuration_page"]()
    names = knobs.flatten(knobs.to_dict(config.ExperimentConfig()))
    assert [name for name in names if f"`{name}`{{ #{name} }}" not in page] == []
    assert "runs/&lt;preset>" in page
    assert "`sgd | adam | None`" in page


def test_the_page_of_the_python_api_has_every_public_name():
    import efficientdet

    page = _PAGES["api_page"]()
    assert [name for name in efficientdet.__all__ if f"::: efficientdet.{name}\n" not in page] == []


@pytest.mark.slow
def test_the_page_of_the_command_line_has_every_verb_without_frames_and_without_the_configuration():
    from efficientdet import cli

    page = _PAGES["command_line_page"]()
    assert [
        name for name, verb in cli.VERBS.items() if isinstance(verb, cli.Verb) and f"\n## {name}\n" not in page
    ] == []
    assert "benchmark inference" in page
    assert "--data.source" not in page
    assert not set("╭│╰─") & set(page)


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    if not all(importlib.util.find_spec(name) for name in ("mkdocs", "material", "mkdocstrings")):
        pytest.skip("needs the extra `docs`")
    words = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > len(list((_ROOT / "docs").glob("*.md")))
    for page in pages:
        fetched = re.findall(r"<(?:link|script|img|iframe)\b[^>]*?(?:href|src)=\"?(https?:[^\" >]*)", page.read_text())
        assert fetched == [], page
    api = (tmp_path / "reference" / "api" / "index.html").read_text(encoding="utf-8")
    assert 'id="efficientdet.Detector.detect"' in api
