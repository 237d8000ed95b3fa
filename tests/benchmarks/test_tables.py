"""README and docs have the numbers of the result files, and only a command writes them."""

import importlib.util
import pathlib
import re

import pytest

_ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("tables", _ROOT / "benchmarks" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_those_of_the_results(tables):
    tables.main(check=True)


def test_a_number_that_differs_from_its_file_is_found(tables):
    text = (_ROOT / "docs" / "performance.md").read_text()
    changed = re.sub(r"10,887", "99,999", text)
    assert changed != text
    assert tables.fill(changed) == text


def test_what_stands_around_a_table_stays(tables):
    text = "before\n<!-- results: roofline -->\nold\n<!-- end -->\nafter <!-- results: ratios --><!-- end --> last"
    filled = tables.fill(text)
    assert filled.startswith("before\n<!-- results: roofline -->\n| GPU")
    assert filled.endswith("<!-- end --> last")
    assert "old" not in filled
