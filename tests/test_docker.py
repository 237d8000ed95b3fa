"""docker/Dockerfile and docker/check.py, as far as it takes no installing; `make docker-check` does that."""

import pathlib
import runpy
import tomllib

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_CHECK = runpy.run_path(str(_ROOT / "docker" / "check.py"))
_INSTRUCTIONS = _CHECK["read_dockerfile"]((_ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8"))


def _values(name):
    return [words for instruction, words in _INSTRUCTIONS if instruction == name]


def test_the_image_takes_an_extra_that_exists_and_brings_cuda_and_tensorflow():
    (argument,) = _values("ARG")
    name, _, extra = argument.partition("=")
    extras = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert name == "EXTRA"
    assert any(requirement.startswith("jax[cuda12]") for requirement in extras[extra])
    assert "efficientdet-keras[tensorflow]" in extras[extra]


def test_the_image_runs_our_command_and_not_as_root():
    assert _values("ENTRYPOINT") == ['["efficientdet"]']
    assert _INSTRUCTIONS[-3:-2] == [("USER", "efficientdet")]


def test_only_what_the_image_needs_reaches_docker():
    patterns = _CHECK["read_patterns"]((_ROOT / ".dockerignore").read_text(encoding="utf-8"))
    files = _CHECK["context_files"](patterns)
    top = {file.parts[0] for file in files}
    assert top == {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "src"}
    assert not any("__pycache__" in file.parts for file in files)


def test_a_dockerfile_is_read_without_comments_and_with_continued_lines():
    text = 'FROM a\n# no\nRUN --mount=type=cache,target=/b \\\n    # no\n    c "d" && \\\n    e\nCMD ["f"]\n'
    assert _CHECK["read_dockerfile"](text) == [
        ("FROM", "a"),
        ("RUN", '--mount=type=cache,target=/b c "d" && e'),
        ("CMD", '["f"]'),
    ]


_PINS = _CHECK["read_patterns"]((_ROOT / "constraints.txt").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "frozen", ["keras==1.0", f"{_PINS[0]}\nunknown-package==1", ""], ids=["another version", "not pinned", "empty"]
)
def test_a_package_without_its_pin_ends_the_check(frozen):
    with pytest.raises(SystemExit, match=r"not the versions of constraints\.txt"):
        _CHECK["check_pins"](frozen)


def test_pinned_packages_pass_however_their_names_are_written():
    pins = [pin.partition("==") for pin in _PINS]
    frozen = [f"{name.replace('_', '-').upper()}=={version}" for name, _, version in pins]
    _CHECK["check_pins"]("\n".join([*frozen, "pip==1", "efficientdet-keras @ file:///a"]))
