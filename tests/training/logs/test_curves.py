"""The image of a run: any length of it, and what is missing or zero."""

import numpy as np
import pytest
from PIL import Image

from efficientdet.training.logs import curves


def _history(count, every):
    lines = []
    for step in range(1, count + 1):
        values = {"loss": 2 / step, "class_loss": 1 / step, "box_loss": 0.01 / step, "learning_rate": 0.08}
        lines.append({"kind": "train", "step": step, "epoch": step / 5, "time": 0.0, "values": values})
        if step % every == 0:
            values = {"loss": 2.2 / step, "AP": 1 - 1 / step, "AP50": None}
            lines.append({"kind": "validation", "step": step, "epoch": step / 5, "time": 0.0, "values": values})
    return lines


@pytest.mark.parametrize(("count", "every"), [(0, 1), (1, 2), (2, 2), (30, 5), (700, 7)])
def test_curves_are_drawn_for_any_length_of_run(tmp_path, count, every):
    path = tmp_path / "curves.png"
    curves.draw_curves(_history(count, every), path)
    with Image.open(path) as image:
        assert image.size == (1320, 770)
        assert len(image.convert("RGB").getcolors(2**20)) > 5
    assert list(tmp_path.iterdir()) == [path]


def test_curves_leave_out_what_is_null_and_take_losses_of_zero(tmp_path):
    lines = _history(6, 2)
    lines[0]["values"]["loss"] = None
    lines[1]["values"]["box_loss"] = 0.0
    curves.draw_curves(lines, tmp_path / "curves.png")
    epochs, values = curves._series(lines, "train", "loss")
    assert len(epochs) == len(values) == 5


def test_smoothing_keeps_a_straight_line_straight():
    np.testing.assert_allclose(curves._smooth(np.full(500, 3.0)), 3.0)
    line = np.arange(500.0)
    np.testing.assert_allclose(curves._smooth(line)[10:-10], line[10:-10])
