"""The sheet of training images: what training sees, from records or photographs, or one line that says why not."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientdet import cli
from efficientdet.config import AugmentationConfig, DataConfig, ExperimentConfig, ModelConfig
from efficientdet.data import conversion, synthetic
from efficientdet.errors import UserError
from efficientdet.training import dataset
from efficientdet.training.trials import previews


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("previews")
    synthetic.write_coco_folder(root / "images", {"train": 6}, (48, 64), seed=0)
    conversion.convert("coco", root / "images", output=root / "records", num_workers=1)
    return root


_SMALL = ExperimentConfig(model=ModelConfig(image_size=(64, 64)), augmentation=AugmentationConfig(mosaic=1.0))


def test_a_sheet_shows_what_training_sees(images, tmp_path):
    location = str(images / "records")
    found = previews.preview(location, output=tmp_path / "a" / "sheet.png", num_images=3, columns=2, config=_SMALL)
    with Image.open(found.output) as sheet:
        cells = 256, 256  # 64 px images four times enlarged
        assert sheet.width > 2 * cells[1]
        assert sheet.height > 2 * cells[0]
    opened = dataset.open_dataset(
        ExperimentConfig(**vars(_SMALL) | {"data": DataConfig(train=location, validation="none")})
    )
    batch, ids = next(opened.training_batches(0, 1))
    assert [photo["id"] for photo in found.images] == ids[:3].tolist()
    for row, photo in enumerate(found.images):
        corners = [[image_box["box"][side] for side in ("y1", "x1", "y2", "x2")] for image_box in photo["boxes"]]
        np.testing.assert_allclose(corners, batch["boxes"][row, : len(corners)], atol=0.006)
        assert len(corners) == batch["num_boxes"][row]


def test_the_command_takes_a_preset_and_the_knobs_of_training(images, tmp_path, capsys):
    words = [
        "preview",
        str(images / "records"),
        "lite0",
        "--output",
        str(tmp_path / "sheet.jpg"),
        "--num-images",
        "2",
    ]
    words += ["--model.image-size", "64", "96", "--augmentation.hue", "0.1", "--augmentation.scale-min", "1"]
    assert cli.main([*words, "--augmentation.scale-max", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["images"]) == 2
    # Sizes are cut to whole pixels, which may lose one.
    assert all(photo["height"] >= 63 or photo["width"] >= 95 for photo in found["images"])
    assert cli.main(words) == 0
    drawn, sizes = capsys.readouterr().out.splitlines()
    assert "2 images with" in drawn
    assert sizes.startswith("object sizes in the network input (square root of the area): ")
    assert sizes.endswith(" are smaller than the smallest anchor (24 px)"), "lite0's"
    assert (tmp_path / "sheet.jpg").is_file()


def test_the_objects_are_as_large_as_their_boxes(images, tmp_path):
    location = str(images / "records")
    found = previews.preview(location, output=tmp_path / "sheet.png", num_images=6, config=_SMALL)
    boxes = [each["box"] for photo in found.images for each in photo["boxes"]]
    sizes = sorted(((box["x2"] - box["x1"]) * (box["y2"] - box["y1"])) ** 0.5 for box in boxes)
    assert found.object_sizes["smallest"] == pytest.approx(sizes[0], abs=0.03)
    assert found.object_sizes["median"] == pytest.approx(np.median(sizes), abs=0.03)
    assert found.object_sizes["largest"] == pytest.approx(sizes[-1], abs=0.03)
    assert found.smallest_anchor == 32
    assert found.object_sizes["below_anchors"] == pytest.approx(np.mean(np.array(sizes) < 32), abs=1e-4)
    assert f"{sizes[0]:.0f} to {sizes[-1]:.0f} px" in found.text()


def test_without_a_box_there_is_no_size():
    found = previews.Preview(output="sheet.jpg", images=[], object_sizes=None, smallest_anchor=32.0)
    assert found.text() == "sheet.jpg: 0 images with 0 boxes"


@pytest.mark.parametrize(("padding", "colour"), [("mean", (124, 116, 104)), ("black", (0, 0, 0))])
def test_beside_an_image_is_the_colour_that_training_pads_with(padding, colour):
    image = np.zeros((6, 8, 3), np.uint8)
    image[:4, :5] = 200
    padded = previews._pad(image, np.array([4, 5]), ModelConfig(padding=padding))
    assert (padded[:4, :5] == 200).all()
    assert {tuple(pixel) for pixel in padded[4:].reshape(-1, 3).tolist()} == {colour}
    assert {tuple(pixel) for pixel in padded[:, 5:].reshape(-1, 3).tolist()} == {colour}


def test_the_sheet_itself_is_padded_so(images, tmp_path):
    small = ExperimentConfig(
        model=ModelConfig(image_size=(256, 256)), augmentation=AugmentationConfig(scale_min=0.2, scale_max=0.2)
    )
    found = previews.preview(
        str(images / "records"), output=tmp_path / "sheet.png", num_images=1, columns=1, config=small
    )
    with Image.open(found.output) as sheet:
        pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
    assert (pixels == (124, 116, 104)).all(axis=1).mean() > 0.8


def test_the_usage_line_says_what_comes_first_and_what_may_follow(capsys):
    with pytest.raises(SystemExit):
        cli.main(["preview", "--help"])
    assert capsys.readouterr().out.splitlines()[0] == "usage: efficientdet preview [-h] [OPTIONS] DATA [PRESET]"


def test_photographs_with_annotations_are_converted_first(images, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = previews.preview(str(images / "images"), output=tmp_path / "sheet.jpg", num_images=1, config=_SMALL)
    assert len(found.images) == 1


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        pytest.param("synthetic", {}, "generated images are not augmented", id="generated images"),
        pytest.param("records", {"num_images": 0}, "`num_images` is 0", id="no images"),
        pytest.param("records", {"columns": 0}, "`columns` is 0", id="no columns"),
        pytest.param("records", {"output": "sheet.txt"}, "`output` is `sheet.txt`", id="no image file"),
        pytest.param("nowhere", {}, "nowhere", id="nothing there"),
    ],
)
def test_a_mistake_is_one_line(images, data, options, message, tmp_path):
    place = data if data == "synthetic" else str(images / data)
    output = Path(options.get("output", tmp_path / "sheet.jpg"))
    with pytest.raises(UserError, match=message) as caught:
        previews.preview(place, config=_SMALL, **options | {"output": output})
    assert "\n" not in str(caught.value)
    assert not output.exists()


def test_a_knob_out_of_range_is_named(images, tmp_path):
    wrong = ExperimentConfig(augmentation=AugmentationConfig(mosaic=1.5))
    with pytest.raises(UserError, match=r"`augmentation.mosaic` is 1.5; it must be between 0 and 1"):
        previews.preview(str(images / "records"), output=tmp_path / "sheet.jpg", config=wrong)
