"""The sizes of objects, read from records without decoding an image."""

import little_datasets
import numpy as np

from efficientdet.data import conversion, synthetic
from efficientdet.data.records import box_sample, store, tfrecord


def test_the_sample_has_every_box_but_crowds(tmp_path):
    source = little_datasets.write_coco(tmp_path / "source")
    conversion.convert("coco", source, output=tmp_path / "records", num_workers=1)
    sample = box_sample.sample_boxes(store.open_records(str(tmp_path / "records"), "train"))
    assert sample.num_images == 2
    np.testing.assert_allclose(sample.sizes, [[30, 20]], rtol=1e-6)  # of 40 x 60 px; float32 fractions in the record
    np.testing.assert_array_equal(sample.image_sizes, [[40, 60]])
    # Letterboxed into 80 x 80 px, the image is 4/3 as large: 40 x 26.67 px.
    np.testing.assert_allclose(sample.areas((80, 80)), [30 * 20 * 16 / 9], rtol=1e-6)


def test_the_sample_is_spread_over_a_large_split(tmp_path, monkeypatch):
    monkeypatch.setattr(box_sample, "MOST_IMAGES", 3)
    synthetic.write_coco_folder(tmp_path / "source", {"train": 7}, (48, 64), seed=0)
    conversion.convert("coco", tmp_path / "source", output=tmp_path / "records", num_workers=1)
    split = store.open_records(str(tmp_path / "records"), "train")
    sample = box_sample.sample_boxes(split)
    expected = [tfrecord.read_boxes(store.read(split, number)) for number in (0, 2, 4)]
    assert sample.num_images == 3
    np.testing.assert_array_equal(sample.image_sizes, [size for size, boxes in expected for _ in boxes])
