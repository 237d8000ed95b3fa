"""scripts/release.py, as far as it takes no building; `make release` builds and tries the wheel."""

import pathlib
import runpy
import tomllib

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_RELEASE = runpy.run_path(str(_ROOT / "scripts" / "release.py"))
_LICENSE = "efficientdet_keras-0.1.0.dist-info/licenses/LICENSE"


def test_a_wheel_with_the_files_of_the_package_and_the_license_passes():
    source = _RELEASE["source_files"]()
    assert {"efficientdet/py.typed", "efficientdet/serving/page/page.html"} <= source
    assert not any("__pycache__" in name for name in source)
    assert _RELEASE["problem_of_wheel"](source | {_LICENSE}, source) is None


@pytest.mark.parametrize(
    ("missing", "extra", "problem"),
    [
        ("efficientdet/py.typed", None, "lacks efficientdet/py.typed"),
        ("efficientdet/serving/page/page.js", None, "lacks efficientdet/serving/page/page.js"),
        (None, "tests/conftest.py", "has tests/conftest.py"),
        (_LICENSE, None, "lacks the license"),
    ],
    ids=["no types", "no page", "tests", "no license"],
)
def test_a_wheel_that_lacks_a_file_or_has_one_too_many_is_named(missing, extra, problem):
    source = _RELEASE["source_files"]()
    names = (source | {_LICENSE} | {extra}) - {missing, None}
    assert problem in _RELEASE["problem_of_wheel"](names, source)


def test_the_package_s_types_are_needed_even_where_the_tree_lacks_them():
    assert "lacks" in _RELEASE["problem_of_wheel"]({_LICENSE}, set())


def test_the_workflow_publishes_what_the_script_has_checked():
    workflow = (_ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    assert "make release" in workflow
    assert "id-token: write" in workflow
    assert "pypa/gh-action-pypi-publish" in workflow


def test_the_tools_of_a_release_are_pinned():
    extras = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    pins = {line.partition("==")[0].lower() for line in (_ROOT / "constraints.txt").read_text().splitlines()}
    tools = {requirement.partition(">=")[0].partition("[")[0] for requirement in extras["release"] + extras["docs"]}
    assert tools <= pins
