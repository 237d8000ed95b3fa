"""README and docs have the numbers of the result files, and only a command writes them."""

import importlib.util
import json
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


def test_the_comparison_with_effdet_is_read_from_its_files(tables, tmp_path, monkeypatch):
    def row(what, ap, seeds):
        metric = {"mean": ap, "standard_deviation": 0.0125 if seeds > 1 else None}
        spread = {"median": 4.0, "min": 3.5, "max": 4.5}
        numbers = {"AP": metric, "AP50": metric, "images_per_second": spread, "minutes": spread}
        return {"what": what, "seeds": list(range(seeds)), **numbers}

    found = {
        "dataset": {"name": "cells", "images": {"train": 205, "val": 87, "test": 72}},
        "settings": {"preset": "lite0", "image_size": [320, 320], "steps": 400, "test": "test"},
        "hardware": {"cores": 2, "cpu": "AMD EPYC"},
        "rows": [row("ours", 0.55, 3), row("effdet, averages, rate 0.03", 0.425, 3), row("ours, otherwise", 0.5, 1)],
        "finetune_ap_minus_effdet": 0.125,
        "ratios": {"finetune_images_per_second_vs_effdet": {"median": 1.5, "min": 1.25, "max": 1.75}},
    }
    monkeypatch.setattr(tables, "_RESULTS", tmp_path)
    places = "<!-- results: finetuning --><!-- end --><!-- results: finetuning runs --><!-- end -->"
    assert tables.fill(places).count("Not measured yet.") == 2
    (tmp_path / "finetuning-cells.json").write_text(json.dumps(found))
    filled = tables.fill(places)
    line = (
        "| cells, 205 images; lite0, 320 px, 400 steps | 0.550 ± 0.013 | 0.425 ± 0.013 | +0.125 | 1.5 (1.25 to 1.75) |"
    )
    assert line in filled
    assert "| cells: 72 images of test; 2 cores of an AMD EPYC | seeds |" in filled
    assert "| ours, otherwise | 1 | 0.500 | 0.500 | 4 (3.5 to 4.5) | 4.0 |" in filled
    (tmp_path / "finetuning-cells.json").write_text(json.dumps({**found, "finetune_ap_minus_effdet": None}))
    assert "Not measured yet." in tables.fill("<!-- results: finetuning --><!-- end -->"), "effdet is still missing"
