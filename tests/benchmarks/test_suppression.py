"""The yardstick of suppression finds what ours finds; else it would measure something else."""

import numpy as np
import pytest

from efficientdet.benchmarks import suppression
from efficientdet.config import PostprocessConfig
from efficientdet.kernels import host_postprocess


@pytest.mark.parametrize(("count", "num_classes"), [(5000, 80), (700, 3), (30, 30)])
def test_the_yardstick_finds_what_the_host_finds(count, num_classes):
    drawn = suppression.spread_candidates(count, num_classes)
    boxes, labels, scores = suppression.soft_nms_by_class(drawn.boxes[0], drawn.labels[0], drawn.scores[0])
    found = host_postprocess.soft_nms(drawn.boxes, drawn.labels, drawn.scores, PostprocessConfig())
    number = int(found["num_detections"][0])
    assert number == len(scores)
    np.testing.assert_array_equal(found["labels"][0, :number], labels)
    np.testing.assert_allclose(found["scores"][0, :number], scores, rtol=2e-5)
    np.testing.assert_array_equal(found["boxes"][0, :number], boxes)


def test_a_comparison_has_a_row_for_each_and_a_ratio():
    rows, ratio = suppression.compare([suppression.spread_candidates(300, 3)], 2)
    assert [row["by"] for row in rows] == ["host", "graph", "NumPy by class"]
    assert all(row["latency_ms"]["count"] == 10 for row in rows)
    assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
