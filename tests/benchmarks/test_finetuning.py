"""The comparison with effdet: same images, same start, fair turns, right statistics, and a result file that resumes.

What trains effdet itself runs where its environment exists (`make VENV=.venv-parity environment`).
"""

import dataclasses
import json
import pathlib
import subprocess
import sys

import finetuning_compare
import finetuning_effdet
import finetuning_ours
import finetuning_plan
import finetuning_unpack
import little_datasets
import numpy as np
import pytest
from finetuning_plan import Options

import efficientdet
from efficientdet import presets
from efficientdet.checkpoints import backbones
from efficientdet.data import pipeline
from efficientdet.data.records import store
from efficientdet.errors import UserError

_ROOT = pathlib.Path(__file__).parents[2]
_PARITY = _ROOT / ".venv-parity" / "bin" / "python"

OPTIONS = Options(
    rates=(0.01, 0.03, 0.06),
    adam_rate=0.003,
    seeds=(0, 1),
    ablation_seeds=(0,),
    our_scales=(0.5, 1.5),
    effdet_scales=(0.1, 2.0),
    selection="val",
    test="test",
)


def run_of(val, test, rate=10.0, weights=("last weights", "averages")):
    """Makes what a training found: AP of each kind of weights, AP50 twice that; images/s; minutes."""
    ap = {
        name: {"val": {"AP": each, "AP50": 2 * each}, "test": {"AP": test, "AP50": 2 * test}}
        for name, each in zip(weights, val, strict=True)
    }
    return {"AP": ap, "images_per_second": rate, "images_per_second_with_start": rate / 2, "minutes": 1.0}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A converted dataset of two splits, each with an image of two boxes, one a crowd, and one of none."""
    source = little_datasets.write_coco(tmp_path_factory.mktemp("coco"))
    output = tmp_path_factory.mktemp("records") / "little"
    files = tuple((name, "instances.json", "images") for name in ("train", "val"))
    efficientdet.convert("coco", source, output=output, files=files, num_workers=1)
    return output


def test_ours_and_effdet_take_turns_and_only_the_first_seed_tries_every_rate():
    names = [run.name for run in finetuning_plan.plan(dataclasses.replace(OPTIONS, ablation_seeds=()), {})]
    assert names == [
        "ours-derived-seed-0",
        "effdet-0.01-seed-0",
        "effdet-0.03-seed-0",
        "effdet-0.06-seed-0",
        "ours-derived-seed-1",
    ]


def test_the_rate_is_the_best_on_the_selection_split_and_the_other_seeds_have_it():
    done = {
        "effdet-0.01-seed-0": run_of([0.1, 0.2], 0.9),
        "effdet-0.03-seed-0": run_of([0.3, 0.4], 0.5),
        "effdet-0.06-seed-0": run_of([0.35, 0.0], 0.7),
    }
    assert finetuning_plan.choose(OPTIONS, done) == (0.03, "averages")
    names = [run.name for run in finetuning_plan.plan(OPTIONS, done)]
    assert names[5:] == [
        "effdet-0.03-seed-1",
        "ours-sgd-derived-seed-0",
        "effdet-adam-0.003-seed-0",
        "ours-scales-derived-seed-0",
        "effdet-scales-0.03-seed-0",
    ]


def test_nothing_is_chosen_until_every_rate_was_tried():
    done = {"effdet-0.01-seed-0": run_of([0.1, 0.2], 0.9)}
    assert finetuning_plan.choose(OPTIONS, done) == (None, None)
    assert finetuning_plan.summarize(OPTIONS, done)["finetune_ap_minus_effdet"] is None


def test_only_some_recipes():
    chosen = dataclasses.replace(OPTIONS, only=("ours",))
    assert {run.recipe for run in finetuning_plan.plan(chosen, {})} == {"ours"}


def test_the_numbers_are_those_worked_out_by_hand():
    ours = ("averages", "last weights", "statistics of the steps")
    done = {
        "ours-derived-seed-0": run_of([0.5] * 3, 0.6, rate=6.0, weights=ours),
        "ours-derived-seed-1": run_of([0.5] * 3, 0.4, rate=12.0, weights=ours),
        "ours-derived-seed-2": run_of([0.5] * 3, 0.9, rate=90.0, weights=ours),  # effdet has no such run yet
    }
    their = ("last weights", "averages", "averages as ours")
    for rate in OPTIONS.rates:
        done[f"effdet-{rate:g}-seed-0"] = run_of([rate, 0.0, 0.0], 0.2, rate=4.0, weights=their)
    done["effdet-0.06-seed-1"] = run_of([0.0, 0.9, 0.0], 0.3, rate=6.0, weights=their)
    options = dataclasses.replace(OPTIONS, seeds=(0, 1, 2))
    found = finetuning_plan.summarize(options, done)
    assert found["compared_seeds"] == [0, 1]
    assert found["finetune_ap_minus_effdet"] == pytest.approx(0.5 - 0.25)
    ratio = {"median": 1.75, "min": 1.5, "max": 2.0}
    assert found["ratios"]["finetune_images_per_second_vs_effdet"] == pytest.approx(ratio)
    assert found["finetune_images_per_second_vs_effdet"] == pytest.approx(1.75)
    effdet = found["rows"][1]
    assert effdet["what"] == "effdet, last weights, rate 0.06"
    assert effdet["AP"]["mean"] == pytest.approx(0.25)
    assert effdet["AP"]["standard_deviation"] == pytest.approx(0.1 / np.sqrt(2)), "of a sample: n - 1"
    assert {row["what"] for row in found["rows"]} >= {
        "ours, weights of the last step",
        "ours, batch statistics of the steps",
        "effdet, averages",
        "effdet, averages as ours",
        "effdet, last weights, rate 0.01",
    }


def test_a_result_file_goes_on_with_its_runs_and_refuses_other_settings(tmp_path):
    path = tmp_path / "result.json"
    facts = {"dataset": {"checksum": "a"}, "settings": {"steps": 400, "seeds": [0]}}
    assert finetuning_compare.resume(path, facts) == {"runs": {}}
    path.write_text(json.dumps({**facts, "runs": {"ours-derived-seed-0": {}}, "rows": [], "backbone_difference": 0.0}))
    more = {"dataset": {"checksum": "a"}, "settings": {"steps": 400, "seeds": [0, 1]}}
    assert finetuning_compare.resume(path, more) == {"runs": {"ours-derived-seed-0": {}}, "backbone_difference": 0.0}
    for other in ({"dataset": {"checksum": "b"}}, {"settings": {"steps": 200, "seeds": [0]}}):
        with pytest.raises(UserError, match=r"`output` .* was begun with `(checksum|steps)` .*, now it is"):
            finetuning_compare.resume(path, {**facts, **other})


@pytest.mark.parametrize("split", ["train", "val"])
def test_effdet_reads_the_same_images_and_boxes(photographs, tmp_path, split):
    finetuning_unpack.unpack(str(photographs), split, tmp_path / split)
    document = json.loads((tmp_path / split / "instances.json").read_text())
    opened = store.open_records(str(photographs), split)
    (truth,) = pipeline.truth_batches(opened)
    ids = [number for number in truth["ids"].tolist() if number >= 0]
    assert [image["id"] for image in document["images"]] == ids
    for row, (image, size) in enumerate(zip(document["images"], truth["sizes"], strict=False)):
        assert [image["height"], image["width"]] == size.tolist()
        boxes = [each for each in document["annotations"] if each["image_id"] == image["id"]]
        assert len(boxes) == truth["num_boxes"][row]
        for box, corners, area, is_crowd in zip(
            boxes, truth["boxes"][row], truth["area"][row], truth["is_crowd"][row], strict=False
        ):
            x, y, width, height = box["bbox"]
            # Fractions are float32 in the records: 40 px come back to a millionth.
            np.testing.assert_allclose([y, x, y + height, x + width], corners, rtol=1e-6, atol=1e-5)
            assert box["area"] == pytest.approx(area)
            assert box["iscrowd"] == is_crowd
        encoded = (tmp_path / split / "images" / image["file_name"]).read_bytes()
        assert encoded[:2] == b"\xff\xd8"
        assert encoded in pathlib.Path(opened.paths[0]).read_bytes(), "the JPEG of the record, byte by byte"


def test_the_backbone_under_timms_names_is_ours(tmp_path):
    model = presets.find_preset("lite0").model
    path = tmp_path / "backbone.safetensors"
    finetuning_unpack.write_backbone("imagenet", model, path)
    written, ours = backbones.read_backbone(str(path), model), backbones.read_backbone("imagenet", model)
    assert written.keys() == ours.keys()
    assert all(np.array_equal(written[name], array) for name, array in ours.items())


def test_another_dataset_has_another_checksum(photographs, tmp_path):
    manifest = json.loads((photographs / "dataset.json").read_text())
    same, other = tmp_path / "same", tmp_path / "other"
    for folder in (same, other):
        folder.mkdir()
        (folder / "dataset.json").write_text(json.dumps(manifest))
        manifest["splits"]["val"]["shards"][0]["sha256"] = "0" * 64
    checksums = [finetuning_unpack.checksum(str(folder)) for folder in (photographs, same, other)]
    assert checksums[0] == checksums[1] != checksums[2]


SUPPRESSION = {
    # boxes as x1, y1, x2, y2; scores; classes; what stays
    "the better of two that overlap by more than half": (
        [[0, 0, 10, 10], [0, 0, 10, 9]],
        [0.5, 0.9],
        [0, 0],
        [1],
    ),
    "both of two classes": ([[0, 0, 10, 10], [0, 0, 10, 10]], [0.5, 0.9], [0, 1], [1, 0]),
    "both at an overlap of exactly half": ([[0, 0, 10, 10], [0, 0, 10, 5]], [0.9, 0.5], [0, 0], [0, 1]),
    "one that only overlaps a suppressed one": (
        [[0, 0, 10, 10], [0, 3, 10, 13], [0, 6, 10, 16]],
        [0.9, 0.8, 0.7],
        [0, 0, 0],
        [0, 2],
    ),
    "of equal scores the first": ([[0, 0, 10, 10], [0, 0, 10, 10]], [0.5, 0.5], [0, 0], [0]),
}


@pytest.mark.parametrize(("boxes", "scores", "classes", "expected"), SUPPRESSION.values(), ids=SUPPRESSION)
def test_suppression_for_effdet_keeps(boxes, scores, classes, expected):
    arrays = (np.array(boxes, float), np.array(scores), np.array(classes))
    assert finetuning_effdet.suppress(*arrays, 0.5, 100).tolist() == expected


def test_suppression_for_effdet_ends_with_the_boxes_that_are_looked_at(rng):
    boxes = rng.uniform(0, 50, (200, 2, 2))
    boxes = np.concatenate([boxes.min(1), boxes.max(1)], axis=1)
    scores, classes = rng.uniform(size=200), rng.integers(0, 3, 200)
    every = finetuning_effdet.suppress(boxes, scores, classes, 0.5, 200)
    assert len(every) > 10
    assert finetuning_effdet.suppress(boxes, scores, classes, 0.5, 10).tolist() == every[:10].tolist()


def test_effdet_sees_each_image_once_an_epoch():
    order = finetuning_effdet.order(7, 17, seed=0)
    assert len(order) == 17
    assert sorted(order[:7]) == sorted(order[7:14]) == list(range(7))
    assert order[:7] != order[7:14]
    assert order != finetuning_effdet.order(7, 17, seed=1)


@pytest.mark.parametrize(
    ("num_images", "steps", "expected"),
    [(205, 400, 40), (205, 4000, 128)],
    ids=["a tenth of a short run", "five epochs of a long one"],
)
def test_warm_up_of_effdet(num_images, steps, expected):
    assert finetuning_effdet.warmup_steps(num_images, 8, steps) == expected


def test_our_speed_leaves_out_the_first_window():
    # Windows of 10, 10 and 5 steps of 8 images: 40 s, 10 s and 5 s.
    found = finetuning_ours.speed([2.0, 8.0, 8.0], 10, 25, 8)
    assert found == pytest.approx({"images_per_second": 8.0, "images_per_second_with_start": 200 / 55})


@pytest.mark.slow
def test_our_side_trains_the_steps_asked_for_and_evaluates_three_kinds_of_weights(photographs, tmp_path):
    found = finetuning_ours.train(
        records=str(photographs),
        preset="demo",
        backbone="",
        image_size=(64, 64),
        batch_size=2,
        steps=4,
        warm_steps=1,
        rate=None,
        method=None,
        scales=(0.5, 1.5),
        seed=0,
        run_dir=str(tmp_path / "run"),
        num_examples=2,
        split="val",
    )
    assert found["AP"].keys() == {"averages", "last weights", "statistics of the steps"}
    assert all(value["val"].keys() == {"AP", "AP50"} for value in found["AP"].values())
    assert found["images_per_second"] > 0


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.skipif(not _PARITY.exists(), reason="`make VENV=.venv-parity environment` makes effdet's environment")
def test_both_backbones_make_the_same_features_of_an_image(tmp_path):
    model = presets.find_preset("lite0").model
    finetuning_unpack.write_backbone("imagenet", model, tmp_path / "backbone.safetensors")
    image = tmp_path / "image.npy"
    np.save(image, np.random.default_rng(0).normal(size=(1, 3, 64, 96)).astype(np.float32))
    finetuning_ours.features(preset="lite0", backbone="imagenet", image=str(image), output=str(tmp_path / "ours.npz"))
    job = {"data": str(tmp_path), "model": "tf_efficientdet_lite0", "image": str(image)}
    theirs = _call(job | {"task": "features", "output": str(tmp_path / "effdet.npz")}, tmp_path)
    assert theirs == {}
    ours, theirs = (dict(np.load(tmp_path / f"{name}.npz")) for name in ("ours", "effdet"))
    assert list(ours) == ["level_3", "level_4", "level_5"]
    # float32 through 16 blocks in two libraries; other weights differ by the features themselves.
    assert finetuning_compare.largest_difference(ours, theirs) < 1e-4


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.skipif(not _PARITY.exists(), reason="`make VENV=.venv-parity environment` makes effdet's environment")
@pytest.mark.parametrize("method", [None, "adam"])
def test_effdet_trains_on_the_images_and_its_detections_can_be_counted(photographs, tmp_path, method):
    for split in ("train", "val"):
        finetuning_unpack.unpack(str(photographs), split, tmp_path / split)
    model = presets.find_preset("lite0").model
    finetuning_unpack.write_backbone("imagenet", model, tmp_path / "backbone.safetensors")
    job = {
        "task": "train",
        "data": str(tmp_path),
        "model": "tf_efficientdet_lite0",
        "num_classes": 90,
        "image_size": (64, 64),
        "batch_size": 2,
        "steps": 3,
        "warm_steps": 1,
        "rate": 0.01,
        "method": method,
        "scales": (0.5, 1.5),
        "seed": 0,
        "splits": ["val"],
        "output": str(tmp_path / "found"),
        "workers": 0,
        "tries_soft": True,
    }
    found = _call(job, tmp_path)
    assert found["detections"].keys() == {
        "last weights",
        "averages",
        "averages as ours",
        "last weights, soft suppression",
        "averages, soft suppression",
    }
    for paths in found["detections"].values():
        counted = efficientdet.evaluation.measuring.evaluate(
            pathlib.Path(paths["val"]), data=str(photographs), split="val"
        )
        assert counted.num_images == 2


def _call(job, folder):
    """Lets effdet's process do a job."""
    asked, answer = folder / "job.json", folder / "result.json"
    asked.write_text(json.dumps(job))
    script = _ROOT / "benchmarks" / "finetuning_effdet.py"
    subprocess.run([_PARITY, script, asked, answer], check=True, stdout=sys.stderr)
    return json.loads(answer.read_text())
