"""Prints what `make parity-all` measured as a Markdown table, the one in docs/parity.md.

python tests/parity/results_table.py
"""

import json
import pathlib

_ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = _ROOT / "benchmarks" / "results"
_FAMILY = [*(f"d{number}" for number in range(8)), "d7x", *(f"lite{name}" for name in ("0", "1", "2", "3", "3x", "4"))]


def main():
    """Prints the table and what it was measured with."""
    print(table(read_results()))


def read_results():
    """Reads the figures of every comparison, in the family's order."""
    results = [json.loads(path.read_text()) for path in RESULTS.glob("parity-*.json")]
    return sorted(results, key=lambda result: (result["backend"] != "tensorflow", _place(result), result["image_size"]))


def _place(result):
    return _FAMILY.index(_short(result))


def _short(result):
    return result["model"].removeprefix("tf_efficientdet_")


def table(results):
    """Writes a row for each comparison: the worst of its outputs in every column."""
    lines = [
        "| network | image, px | runs on | spread | float64 | float32 | effdet's float32 | largest ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        outputs = result["outputs"]
        height, width = result["image_size"]
        exact = [output["exact"] for output in outputs]
        cells = [
            _short(result),
            f"{height} x {width}",
            {"tensorflow": "TensorFlow", "jax": "JAX"}[result["backend"]],
            f"{max(output['spread'] for output in outputs):.2f}",
            "" if None in exact else f"{max(exact):.1e}",
            f"{max(output['difference'] for output in outputs):.1e}",
            f"{max(output['noise'] for output in outputs):.1e}",
            f"{result['largest_ratio']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
