"""The verb download, from a real server with a very small COCO: resumed, checked, and nothing done twice."""

import io
import json
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import little_datasets
import little_server
import pytest

from efficientdet import cli
from efficientdet.data import coco_download
from efficientdet.data.records import store
from efficientdet.errors import UserError

ANNOTATIONS = "/annotations/annotations_trainval2017.zip"
TRAIN, VAL = "/zips/train2017.zip", "/zips/val2017.zip"
HEIGHT, WIDTH = 200, 300


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """Archives as COCO has them: three images to train on, two to validate; uncompressed images."""
    folder = tmp_path_factory.mktemp("coco")
    documents = {"annotations/captions_val2017.json": b"{}"}
    archives = {}
    for split, ids in (("train", (9, 25, 30)), ("val", (139, 285))):
        files = {}
        for number in ids:
            path = little_datasets.draw(folder / f"{number:012d}.jpg", (HEIGHT, WIDTH), seed=number)
            files[f"{split}2017/{path.name}"] = path.read_bytes()
        documents[f"annotations/instances_{split}2017.json"] = json.dumps(_instances(ids)).encode()
        archives[f"/zips/{split}2017.zip"] = _zip({f"{split}2017/": b""} | files)
    return archives | {ANNOTATIONS: _zip(documents)}


def _instances(ids):
    images = [
        {"id": number, "file_name": f"{number:012d}.jpg", "height": HEIGHT}
        | {"width": WIDTH, "coco_url": "http://images.cocodataset.org/x.jpg"}
        for number in ids
    ]
    boxes = [
        {"id": number, "image_id": number, "category_id": 90, "bbox": [1, 2, 30, 20], "area": 600, "iscrowd": 0}
        for number in ids
    ]
    return {"images": images, "annotations": boxes, "categories": [{"id": 90, "name": "toothbrush"}]}


def _zip(files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


@pytest.fixture
def server(contents, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with little_server.serve() as server:
        server.files = {path: little_server.File(content=content) for path, content in contents.items()}
        yield server


def _download(server, output, **options):
    return coco_download.download("coco2017", output=output, mirror=server.address, **{"num_workers": 1} | options)


def _fail(server, output, **options):
    with pytest.raises(UserError) as caught:
        _download(server, output, **options)
    assert "\n" not in str(caught.value)
    assert not (output / "records").exists()
    return str(caught.value)


def _fetched(server):
    return [path for method, path, _ in server.asked if method == "GET"]


def test_coco_comes_by_name_and_only_once(server, tmp_path, capsys):
    output = tmp_path / "new" / "coco"
    result = _download(server, output)
    assert _fetched(server) == [ANNOTATIONS, VAL, TRAIN]
    assert result.fetched == {path.rpartition("/")[2]: len(server.files[path].content) for path in _fetched(server)}
    assert result.is_converted
    # Of 256 and 32 files no more than there are images.
    assert result.splits == {
        "train": {"num_examples": 3, "num_boxes": 3, "num_shards": 3},
        "val": {"num_examples": 2, "num_boxes": 2, "num_shards": 2},
    }
    opened = store.open_records(result.records, "train")
    assert (len(opened), opened.num_boxes, [category.id for category in opened.categories]) == (3, 3, [90])
    said = capsys.readouterr().err
    assert f"from {server.address}" in said
    assert "Disk space: " in said
    assert little_datasets.names(output) == ["annotations", "archives", "download.json", "images", "records"]

    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    server.asked.clear()
    again = _download(server, output)
    assert (again.fetched, again.unpacked, again.is_converted, again.removed) == ({}, (), False, ())
    assert again.splits == result.splits
    assert "nothing to do" in again.text()
    assert server.asked == []
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_a_killed_download_goes_on_in_the_middle_of_an_archive(server, tmp_path):
    train = server.files[TRAIN]
    train.hangs_after = len(train.content) // 2
    program = (
        "import pathlib, sys; from efficientdet.data import coco_download; "
        "coco_download.download('coco2017', output=pathlib.Path(sys.argv[1]), mirror=sys.argv[2])"
    )
    words = [sys.executable, "-c", program, str(tmp_path / "coco"), server.address]
    part = tmp_path / "coco" / "archives" / "train2017.zip.part"
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 60
        while _fetched(server)[-1:] != [TRAIN] or not part.exists():
            assert process.poll() is None
            assert time.monotonic() < until, "it took too long"
            time.sleep(0.01)
        time.sleep(0.2)  # for the bytes to be read from the socket
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "coco" / "images" / "val2017").is_dir()
    train.hangs_after = None
    server.asked.clear()
    (tmp_path / "coco" / ".partial-records-1").mkdir()  # of a conversion that was killed
    result = _download(server, tmp_path / "coco")
    assert [headers.get("Range", "all")[:6] for headers in server.gets()] == ["bytes="]
    assert _fetched(server) == [TRAIN]
    assert result.splits["train"]["num_examples"] == 3
    assert sorted(path.name for path in (tmp_path / "coco" / "archives").iterdir()) == [
        "annotations_trainval2017.zip",
        "train2017.zip",
        "val2017.zip",
    ]
    assert not (tmp_path / "coco" / ".partial-records-1").exists()


def test_what_somebody_has_already_is_not_fetched(server, contents, tmp_path):
    (tmp_path / "coco" / "archives").mkdir(parents=True)
    (tmp_path / "coco" / "archives" / "annotations_trainval2017.zip").write_bytes(contents[ANNOTATIONS])
    with zipfile.ZipFile(io.BytesIO(contents[VAL])) as archive:
        archive.extractall(tmp_path / "elsewhere")
    (tmp_path / "coco" / "images").mkdir()
    (tmp_path / "coco" / "images" / "val2017").symlink_to(tmp_path / "elsewhere" / "val2017")
    result = _download(server, tmp_path / "coco", splits=("val",), remove_images=True)
    assert server.asked == []
    assert result.splits == {"val": {"num_examples": 2, "num_boxes": 2, "num_shards": 2}}
    assert not (tmp_path / "coco" / "images").exists()
    assert len(little_datasets.names(tmp_path / "elsewhere" / "val2017")) == 2


def test_a_second_split_joins_the_first(server, tmp_path):
    first = _download(server, tmp_path / "coco", splits=("val",))
    assert list(first.splits) == ["val"]
    assert TRAIN not in _fetched(server)
    server.asked.clear()
    second = _download(server, tmp_path / "coco", splits=("train",))
    assert _fetched(server) == [TRAIN]
    assert second.splits == _download(server, tmp_path / "coco").splits
    assert set(second.splits) == {"train", "val"}


def test_records_that_were_damaged_are_written_again(server, tmp_path):
    result = _download(server, tmp_path / "coco")
    shard = next((tmp_path / "coco" / "records").glob("val-*.tfrecord"))
    shard.write_bytes(shard.read_bytes()[:-1])
    server.asked.clear()
    again = _download(server, tmp_path / "coco")
    assert again.is_converted
    assert again.splits == result.splits
    assert server.asked == []


def test_a_table_of_contents_that_was_damaged_is_written_again(server, tmp_path):
    first = _download(server, tmp_path)
    (tmp_path / "records" / "dataset.json").write_text('{"splits": {"train": {}, "val": 3}}')
    again = _download(server, tmp_path)
    assert again.is_converted
    assert again.splits == first.splits
    assert again.fetched == {}


def test_archives_and_images_are_removed_on_request_when_the_records_are_complete(server, tmp_path):
    _download(server, tmp_path / "coco")
    (tmp_path / "coco" / "archives" / "mine.zip").touch()
    result = _download(server, tmp_path / "coco", remove_archives=True, remove_images=True)
    assert len(result.removed) == 5
    assert little_datasets.names(tmp_path / "coco") == ["annotations", "archives", "download.json", "records"]
    assert little_datasets.names(tmp_path / "coco" / "archives") == ["mine.zip"]
    server.asked.clear()
    assert not _download(server, tmp_path / "coco").is_converted
    assert server.asked == []


def test_nothing_is_removed_before_the_records_are_complete(server, tmp_path):
    images = {f"val2017/{number:012d}.jpg": b"no image" for number in (139, 285)}
    server.files[VAL].content = _zip(images)
    message = _fail(server, tmp_path / "coco", splits=("val",), remove_archives=True, remove_images=True)
    assert "000000000139.jpg" in message
    assert (tmp_path / "coco" / "archives" / "val2017.zip").is_file()
    assert (tmp_path / "coco" / "images" / "val2017").is_dir()


def test_a_damaged_archive_is_named_and_leaves_nothing_that_looks_complete(server, contents, tmp_path):
    content = bytearray(contents[VAL])
    content[content.index(b"\xff\xd8\xff") + 100] ^= 1
    server.files[VAL].content = bytes(content)
    archive = tmp_path / "coco" / "archives" / "val2017.zip"
    message = _fail(server, tmp_path / "coco", splits=("val",))
    assert f"`{archive}` is damaged or truncated (Bad CRC-32" in message
    assert little_datasets.names(tmp_path / "coco" / "images") == []
    archive.unlink()
    server.files[VAL] = little_server.File(content=contents[VAL])
    assert _download(server, tmp_path / "coco", splits=("val",)).is_converted


def test_what_coco_s_own_server_sends_must_be_what_is_published(server, tmp_path, monkeypatch):
    monkeypatch.setattr(coco_download, "SERVER", server.address)
    text = _fail(server, tmp_path / "coco")
    assert "has the SHA-256 " in text
    assert "instead of 113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268" in text
    assert _fetched(server) == [ANNOTATIONS]


def test_an_archive_without_instances_is_refused(server, tmp_path):
    # What NVIDIA's script converted: captions have no boxes.
    server.files[ANNOTATIONS].content = _zip({"annotations/captions_val2017.json": b"{}"})
    message = _fail(server, tmp_path / "coco", splits=("val",))
    assert "does not contain `instances_val2017.json`" in message
    assert not (tmp_path / "coco" / "annotations").exists()
    (tmp_path / "coco" / "annotations").mkdir()
    (tmp_path / "coco" / "annotations" / "captions_val2017.json").touch()
    assert "has no `instances_val2017.json`; remove the folder" in _fail(server, tmp_path / "coco", splits=("val",))


def test_too_little_room_is_said_before_anything_is_fetched(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    message = _fail(server, tmp_path / "coco")
    assert "has 1,000 bytes free, but COCO 2017 needs" in message
    # A server that does not tell sizes: COCO's published ones, three times for the images.
    for file in server.files.values():
        file.statuses = [405]
    assert "needs 64.0 GB" in _fail(server, tmp_path / "coco")
    assert _fetched(server) == []


def test_records_of_something_else_are_left_alone(server, tmp_path):
    (tmp_path / "coco" / "records").mkdir(parents=True)
    with pytest.raises(UserError, match="has records from another dataset"):
        _download(server, tmp_path / "coco")
    assert little_datasets.names(tmp_path / "coco") == ["records"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"splits": ()}, "`splits` is ``"),
        ({"splits": ("test",)}, "`splits` is `test`"),
        ({"mirror": "images"}, "`images` is not a web address"),
        ({"num_workers": -1}, "`num_workers` is -1"),
    ],
)
def test_a_wrong_argument_is_named(tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        coco_download.download("coco2017", output=tmp_path / "coco", **options)
    with pytest.raises(UserError, match="`dataset` is `coco2014`; it must be coco2017"):
        coco_download.download("coco2014", output=tmp_path / "coco")
    assert little_datasets.names(tmp_path) == []


def test_a_server_without_the_archive_is_said_before_anything_is_fetched(server, tmp_path):
    del server.files[TRAIN]
    assert f"`{server.address}{TRAIN}` does not exist" in _fail(server, tmp_path / "coco")
    assert _fetched(server) == []


def test_the_verb_prints_what_was_done_or_json(server, tmp_path, capsys):
    words = ["download", "coco2017", "--output", str(tmp_path / "coco"), "--mirror", server.address, "--splits", "val"]
    assert cli.main([*words, "--num-workers", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["splits"] == {"val": {"num_examples": 2, "num_boxes": 2, "num_shards": 2}}
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert "val: 2 images, 2 boxes, 2 files" in shown
    assert "nothing to do" in shown
    assert f"--data.train {found['records']}" in shown
