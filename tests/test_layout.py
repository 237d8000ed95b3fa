"""The house rules that no linter knows: sizes, names, docstrings, the tree in the docs, a light import."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[1]
_PACKAGE = _ROOT / "src" / "efficientdet"
_MODULES = sorted(_PACKAGE.rglob("*.py"))
_TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in _MODULES}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def _inside(path):
    return path.relative_to(_PACKAGE).as_posix()


each_module = pytest.mark.parametrize("path", _MODULES, ids=_inside)


def _public(nodes):
    """Returns the functions and classes among `nodes` whose names have no leading underscore."""
    definitions = (node for node in nodes if isinstance(node, (*_FUNCTIONS, ast.ClassDef)))
    return [node for node in definitions if not node.name.startswith("_")]


def _nouns():
    """Returns the name of every module and folder of the package."""
    names = {part.removesuffix(".py") for path in _MODULES for part in path.relative_to(_PACKAGE).parts}
    return names - {"__init__", "__main__"}


@each_module
def test_a_module_has_400_lines_at_most(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("folder", sorted({path.parent for path in _MODULES}), ids=_inside)
def test_a_folder_has_12_modules_at_most(folder):
    assert len([path for path in folder.glob("*.py") if path.name not in ("__init__.py", "__main__.py")]) <= 12


def test_no_module_is_named_after_nothing():
    assert not _nouns() & {"utils", "util", "helpers", "common", "misc", "base"}


@each_module
def test_no_public_name_is_a_module_s_name(path):
    assert not {node.name for node in _public(_TREES[path].body)} & _nouns()


def test_no_layer_asks_where_it_runs():
    """That is `kernels.choice`'s, once, when a network is built."""
    for path in sorted((_PACKAGE / "model").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"backend\.(backend|running|gpus|is_)|import backend", text), path


@pytest.mark.parametrize(
    "path",
    [
        "model/efficientdet.py",
        "training/targets.py",
        "training/losses.py",
        "training/step.py",
        "training/run.py",
        "model/postprocess.py",
    ],
)
def test_the_story_is_short_and_not_about_machines(path):
    text = (_PACKAGE / path).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    assert not re.findall(r"(?i)\b(?:devices?|processes|backends?|gpus?|cpus?|tensorflow)\b", text)
    assert f"]({'../src/efficientdet/' + path})" in (_ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


@each_module
def test_every_module_says_what_it_is(path):
    tree = _TREES[path]
    assert not tree.body or ast.get_docstring(tree), "no docstring"


def _is_overload(node):
    """Says whether a function is one of several types of the one that follows."""
    return any(isinstance(decorator, ast.Name) and decorator.id == "overload" for decorator in node.decorator_list)


@each_module
def test_every_public_function_and_class_has_a_docstring(path):
    public = _public(_TREES[path].body)
    methods = [method for node in public if isinstance(node, ast.ClassDef) for method in _public(node.body)]
    said = [node for node in public + methods if ast.get_docstring(node) or _is_overload(node)]
    assert not [f"{node.name} (line {node.lineno})" for node in public + methods if node not in said]


@each_module
def test_every_argument_that_a_docstring_explains_is_there(path):
    """Under another name its explanation would be in no `--help`."""
    for node in ast.walk(_TREES[path]):
        if not isinstance(node, _FUNCTIONS) or "Args:" not in (text := ast.get_docstring(node) or ""):
            continue
        section = re.split(r"\n(?:Returns|Raises|Yields):", text.split("Args:")[1])[0]
        explained = {
            name for line in re.findall(r"^    (\w[\w, *]*):", section, re.M) for name in re.findall(r"\w+", line)
        }
        arguments = node.args
        known = {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
        known |= {a.arg for a in (arguments.vararg, arguments.kwarg) if a}
        assert explained <= known, node.name


def test_every_knob_has_a_docstring_under_it():
    classes = [node for node in _TREES[_PACKAGE / "config.py"].body if isinstance(node, ast.ClassDef)]
    sections = {node.name for node in classes}
    silent = []
    for node in classes:
        for field, below in zip(node.body, [*node.body[1:], None], strict=True):
            # A field that is a section (`model: ModelConfig`) is explained by the section's own docstring.
            if not isinstance(field, ast.AnnAssign) or ast.unparse(field.annotation) in sections:
                continue
            explained = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if not (explained and isinstance(below.value.value, str)):
                silent.append(f"{node.name}.{ast.unparse(field.target)}")
    assert classes
    assert not silent


def _files_in_tree(text):
    """Reads the files under src/efficientdet/ out of a tree.

    The tree is a fenced block with a line `├── src/efficientdet/`. Below it each line names one file, or one folder
    with a slash at its end: four characters (`│   ` or spaces) a level, `├── ` or `└── `, the name, a remark if any.
    """
    for block in re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if not re.search(r"^[├└]── src/efficientdet/", block, re.MULTILINE):
            continue
        files, folders = [], []
        for line in block.splitlines():
            if match := re.match(r"((?:│   |    )*)[├└]── (\S+)", line):
                depth, name = len(match[1]) // 4, match[2]
                folders = folders[:depth]
                if name.endswith("/"):
                    folders.append(name)
                elif folders[:1] == ["src/efficientdet/"]:
                    files.append("".join([*folders[1:], name]))
        return files
    raise AssertionError("no fenced tree with a line `├── src/efficientdet/`")


def test_a_tree_is_read_to_any_depth():
    text = """
```
├── Makefile                 demo, test, check
├── src/efficientdet/
│   ├── boxes.py             geometry
│   └── model/               the network
│       ├── heads.py         class head and box head
│       └── checkpoints/
│           └── automl.py
└── tests/
    └── test_layout.py
```
"""
    assert _files_in_tree(text) == ["boxes.py", "model/heads.py", "model/checkpoints/automl.py"]


def test_the_architecture_names_every_module_and_no_other():
    named = _files_in_tree((_ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    # The file that only makes a folder a package is no module to a reader.
    existing = {_inside(path) for path in _MODULES if path.parent == _PACKAGE or path.name != "__init__.py"}
    assert len(named) == len(set(named)), "a module is named twice"
    assert set(named) == existing


def _run_python(*arguments):
    """Runs a new Python; coverage would import much."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    words = [sys.executable, *arguments]
    return subprocess.run(words, capture_output=True, text=True, env=environment, check=True, timeout=60).stdout


def test_help_imports_nothing_that_takes_long():
    program = (
        "import sys; from efficientdet import cli; cli.main(['--help']);"
        "print(*{name.split('.')[0] for name in sys.modules} - sys.stdlib_module_names)"
    )
    *page, imported = _run_python("-c", program).splitlines()
    assert any("train" in line for line in page)
    # What starts with the interpreter, such as a path hook of an installer, is not ours.
    before = _run_python("-c", "import sys; print(*{name.split('.')[0] for name in sys.modules})").split()
    assert set(imported.split()) - set(before) == {"efficientdet"}


def test_importing_the_package_imports_no_framework():
    program = "import sys, efficientdet; print(*{'tensorflow', 'jax', 'keras'} & set(sys.modules))"
    assert _run_python("-c", program).split() == []
