"""`benchmark train` on a small model: rates, the wait for input, a rival in turns, and what a file says."""

import json
import re
import sys

import pytest

from efficientdet.benchmarks import rivals
from efficientdet.benchmarks.training import benchmark_train
from efficientdet.data import conversion, synthetic
from efficientdet.errors import UserError

pytestmark = pytest.mark.usefixtures("uncompiled")

_RIVAL = """\
import json, sys, time
for line in sys.stdin:
    print(json.dumps({"rate": 0.5, "layout": "of its own", "arguments": sys.argv[1:]}), flush=True)
"""
_QUICK = {"preset": "demo", "image_size": (64, 64), "steps": 1, "rounds": 2, "warmup": 1}


@pytest.mark.slow
def test_each_batch_size_is_measured_beside_a_rival(tmp_path):
    (tmp_path / "rival.py").write_text(_RIVAL)
    output = tmp_path / "train.json"
    command = f'"{sys.executable}" "{tmp_path / "rival.py"}" train'
    found = benchmark_train(batch_sizes=(1, 2), rival=command, output=output, **_QUICK)
    assert [row["batch_size"] for row in found.rows] == [1, 2]
    for row in found.rows:
        speed = row["images_per_second"]
        assert 0 < speed["min"] <= speed["median"] <= speed["max"]
        assert row["peak_memory_mb"] > 100
        assert "input_wait" not in row
    ratio = found.ratios["train_cpu_vs_effdet"]
    assert ratio["median"] == pytest.approx(found.rows[0]["images_per_second"]["median"] / 0.5, rel=1e-2)
    told = "train --image-size 64 64 --batch-size 1 --precision float32 --calls 1"
    assert found.rival["arguments"] == told.split()
    written = json.loads(output.read_text())
    assert written["ratios"] == found.ratios
    assert written.keys() >= {"what", "rows", "hardware", "versions", "commit", "command", "date"}
    assert re.search(r"of its own|rival", str(found.table().columns[0]._cells))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Even though the")  # the pipeline stays a graph
def test_with_records_the_wait_for_input_is_part_of_it(tmp_path):
    synthetic.write_coco_folder(tmp_path / "images", {"train": 6, "val": 2}, (64, 64), 0)
    conversion.convert("coco", tmp_path / "images", output=tmp_path / "records", num_workers=1)
    found = benchmark_train(tmp_path / "records", batch_sizes=(2,), depthwise=("convolution", "shifts"), **_QUICK)
    assert [row["depthwise"] for row in found.rows] == ["convolution", "shifts"]
    assert all(0 <= row["input_wait"] < 1 for row in found.rows)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"batch_sizes": ()}, "`--batch-sizes` is"), ({"steps": 0}, "`--steps` is 0"), ({"rounds": 0}, "`--rounds` is 0")],
)
def test_what_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        benchmark_train(**wrong)


def test_published_figures_are_nvidia_s_of_the_same_kind():
    assert rivals.training_rates("d0", "mixed_float16", 8) == {"A100": 2711.0, "V100": 777.0}
    assert rivals.training_rates("d0-tf32-8xa100", "tf32", 1) == {"A100": 162.0}
    assert rivals.training_rates("d1", "tf32", 1) == {}
    assert rivals.inference_rates("d0", 64) == {"A100": 706.0}
    assert rivals.inference_rates("d0", 3) == {}
