"""Annotation formats: one dataset written in each of them converts to the same boxes, names and splits."""

import io
import re
from pathlib import Path

import little_formats
import numpy as np
import pytest
from PIL import Image

from efficientdet import cli
from efficientdet.command_line import grammars
from efficientdet.data import conversion, recognition, registry
from efficientdet.data.records import store, tfrecord
from efficientdet.media import images

_DOCS = Path(__file__).parents[3] / "docs" / "data.md"


def _measure(pixels):
    """Finds the box of the red rectangle: yxyx px."""
    # 90: how far JPEG moves the colours of a sharp edge.
    ys, xs = np.nonzero(np.abs(pixels.astype(int) - (255, 0, 0)).max(axis=-1) < 90)
    return [ys.min(), xs.min(), ys.max() + 1, xs.max() + 1]


def _expected():
    return sorted((name[:3], label, box) for name, objects in little_formats.IMAGES.items() for label, box in objects)


@pytest.mark.parametrize(("format", "write"), little_formats.WRITERS.values(), ids=little_formats.WRITERS)
def test_a_dataset_reads_the_same_in_every_format(tmp_path, format, write):
    write(tmp_path)
    assert recognition.recognize(tmp_path) == format
    if format not in registry.READERS:
        return
    source = registry.read(format, tmp_path)
    assert [category.name for category in source.categories] == ["blue", "green", "red"]
    assert {split: len(examples) for split, examples in source.splits.items()} == {"train": 2, "val": 1}
    found = []
    for split, examples in source.splits.items():
        for example in examples:
            pixels = images.read_image(example.path, example.file_name)
            scale = np.tile(pixels.shape[:2], 2) if example.is_normalized else 1
            assert example.declared_size in (None, pixels.shape[:2])
            for box, label in zip(example.boxes * scale, example.labels, strict=True):
                # 1e-4 px: float32.
                assert np.abs(box - np.round(box)).max() < 1e-4
                name = source.categories[label].name
                found.append((split[:3], name, tuple(np.round(box).astype(int).tolist())))
                if name == "red":
                    assert tuple(_measure(pixels)) == found[-1][2]
    assert sorted(found) == _expected()


@pytest.fixture(scope="module")
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize("row", little_formats.WRITERS)
@pytest.mark.usefixtures("_cache")
def test_the_manual_s_command_converts_every_format(tmp_path, capsys, row):
    format, write = little_formats.WRITERS[row]
    write(tmp_path / "in")
    words = _commands()[row].split()
    assert words[:3] == ["efficientdet", "convert", format]
    words = [{"FOLDER": str(tmp_path / "in"), "DIR": str(tmp_path / "out")}.get(word, word) for word in words[1:]]
    assert cli.main([*words, "--num-workers", "1"]) == 0
    assert "Written to" in capsys.readouterr().out
    found = []
    for split in ("train", "val"):
        opened = store.open_records(str(tmp_path / "out"), split)
        names = {category.id: category.name for category in opened.categories}
        for shard, offset, length in zip(opened.shards, opened.offsets, opened.lengths, strict=True):
            with open(opened.paths[shard], "rb") as file:  # noqa: PTH123 - paths are strings
                file.seek(offset)
                record = {name: value.numpy() for name, value in tfrecord.parse(file.read(length)).items()}
            boxes = record["boxes"] * [120, 160, 120, 160]
            found += [
                (split[:3], names[number], tuple(np.round(box).astype(int).tolist()))
                for number, box in zip(record["category_ids"].tolist(), boxes, strict=True)
            ]
            with Image.open(io.BytesIO(record["encoded"])) as image:
                pixels = np.asarray(image)
            for number, box in zip(record["category_ids"].tolist(), boxes, strict=True):
                if names[number] == "red":
                    # 1 px: JPEG blurs the edges.
                    np.testing.assert_allclose(box, _measure(pixels), atol=1)
    assert sorted(found) == _expected()


def _commands():
    """Reads the manual's table: tool -> command."""
    text = _DOCS.read_text(encoding="utf-8")
    table = re.search(r"^\| tool \|.*?\n\n", text, re.MULTILINE | re.DOTALL)
    assert table is not None
    rows = [line.strip("|").split("|") for line in table[0].strip().splitlines()[2:]]
    return {row[0].strip(): row[2].strip().strip("`") for row in rows}


def test_the_manual_has_every_format_and_every_way_to_export_is_tested():
    assert list(_commands()) == list(little_formats.WRITERS)
    assert {format for format, _ in little_formats.WRITERS.values()} == set(registry.NAMES)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["in", "--output", "out"], ["auto", "in", "--output", "out"]),
        (["--output", "out", "in"], ["auto", "--output", "out", "in"]),
        (["--output", "coco", "in"], ["auto", "--output", "coco", "in"]),
        (["in", "--splits", "voc", "test"], ["auto", "in", "--splits", "voc", "test"]),
        (["voc", "in", "--output", "out"], ["voc", "in", "--output", "out"]),
        (["--dry-run", "voc", "in"], ["--dry-run", "voc", "in"]),
        (["--output=out", "voc", "in"], ["--output=out", "voc", "in"]),
        (["voc", "--output", "out"], ["voc", "--output", "out"]),
        (["cocoo", "in"], ["cocoo", "in"]),
        (["--help"], ["--help"]),
    ],
    ids=" ".join,
)
def test_the_format_may_be_left_out(words, expected):
    assert grammars.convert(words).words == expected


@pytest.mark.usefixtures("_cache")
def test_the_command_without_a_format_says_which_one_it_was(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    little_formats.write_labelme(tmp_path / "voc")  # a folder may be called as a format is
    assert cli.main(["convert", "voc", "--output", "out", "--num-workers", "1", "--json"]) == 0
    assert '"format": "labelme"' in capsys.readouterr().out


@pytest.mark.usefixtures("_cache")
def test_a_source_to_train_on_is_recognised_and_converted_again_when_it_changes(tmp_path):
    little_formats.write_roboflow_csv(tmp_path)
    first = conversion.convert_once(tmp_path)
    assert store.split_names(first) == ["train", "val"]
    assert conversion.convert_once(tmp_path) == first
    path = tmp_path / "train" / "_annotations.csv"
    path.write_text(path.read_text().replace("green", "grey"))
    second = conversion.convert_once(tmp_path)
    assert [category.name for category in store.open_records(str(second), "train").categories] == [
        "blue",
        "grey",
        "red",
    ]
