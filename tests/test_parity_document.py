"""docs/parity.md shows what was measured, and nothing that does not agree."""

import json
import pathlib

import agreement
import pytest
import results_table

_DOCUMENT = pathlib.Path(__file__).resolve().parents[1] / "docs" / "parity.md"


def test_the_table_is_made_from_the_results():
    assert results_table.table(results_table.read_results()) in _DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(results_table.RESULTS.glob("parity-*.json")), ids=lambda path: path.stem)
def test_a_result_is_within_the_limits(path):
    result = json.loads(path.read_text(encoding="utf-8"))
    rows = [agreement.Row(**row) for row in result["outputs"]]
    assert result["agrees"]
    assert len(rows) >= 10
    assert all(row.agrees for row in rows)
