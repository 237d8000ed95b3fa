"""Published weights by name, fetched from a real server on this computer."""

import concurrent.futures
import io
import tarfile
import threading

import little_checkpoints
import little_server
import numpy as np
import pytest

from efficientdet import presets
from efficientdet.checkpoints import class_tables, pretrained
from efficientdet.errors import UserError
from efficientdet.model import weights
from efficientdet.model.efficientdet import EfficientDet

_PATH = "/efficientdet/coco2/efficientdet-d0.tar.gz"


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(1)
    model = EfficientDet(presets.MODELS["d0"])
    return {weights.variable_name(v): rng.uniform(0.5, 1.5, v.shape).astype(np.float32) for v in model.weights}


@pytest.fixture(scope="module")
def archive(arrays, tmp_path_factory):
    """What google/automl publishes: a folder with a TensorFlow 1 checkpoint, averages and raw values."""
    folder = tmp_path_factory.mktemp("published") / "efficientdet-d0"
    folder.mkdir()
    named = little_checkpoints.automl(arrays)
    little_checkpoints.write_tensorflow1(folder / "model", named, raw={k: v + 1 for k, v in named.items()})
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w:gz", compresslevel=1) as tar:
        tar.add(folder, arcname="efficientdet-d0")
    return body.getvalue()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(pretrained, "_SILENCE", 0.5)
    with little_server.serve() as server:
        monkeypatch.setenv(pretrained.ADDRESS_VARIABLE, f"{server.address}/efficientdet/")
        yield server


def _cached(tmp_path):
    return sorted(path.name for path in tmp_path.rglob("*") if path.is_file() and not path.name.endswith(".lock"))


def test_a_published_model_is_fetched_and_imported_once(server, archive, arrays, tmp_path):
    server.files[_PATH] = little_server.File(content=archive)
    path = pretrained.find_weights("coco", "d0")
    loaded = weights.load(path)
    assert loaded.categories == class_tables.CATEGORIES
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded.arrays[name], array)
    assert _cached(tmp_path) == ["coco-d0.safetensors"]
    num_asked = len(server.asked)
    assert pretrained.find_weights("coco-d0") == path
    assert len(server.asked) == num_asked


def test_two_that_want_the_same_model_at_once_both_get_it(server, archive, tmp_path):
    server.files[_PATH] = little_server.File(content=archive)
    start = threading.Barrier(2)

    def find(_):
        start.wait()
        return pretrained.find_weights("coco-d0")

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(find, range(2)))
    assert paths[0] == paths[1]
    assert weights.load(paths[0]).categories == class_tables.CATEGORIES
    assert len(server.gets()) == 1
    assert _cached(tmp_path) == ["coco-d0.safetensors"]


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "efficientdet-keras").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="cannot be written"):
        pretrained.find_weights("coco-d0")


def test_a_connection_that_breaks_off_goes_on(server, archive):
    server.files[_PATH] = little_server.File(content=archive, cuts=[len(archive) // 3])
    weights.load(pretrained.find_weights("coco-d0"))
    assert "Range" in server.gets()[-1]


_FAILURES = {
    "not there": (None, "404"),
    "hangs": ({"hangs_after": 1000}, "0.5 s"),
    "truncated": ({"cut": 100_000}, "damaged or truncated"),
    "damaged checkpoint": ({"archive": "damaged"}, "not a complete TensorFlow checkpoint"),
    "another network": ({"archive": "another"}, "class predictor's bias `.*` is missing"),
    "no archive": ({"text": True}, "damaged or truncated"),
}


@pytest.mark.parametrize(("how", "expected"), _FAILURES.values(), ids=_FAILURES)
def test_what_goes_wrong_is_one_line_and_leaves_no_weights(how, expected, server, archive, tmp_path, tmp_path_factory):
    if how is not None:
        content = archive[: how.get("cut")]
        if kind := how.get("archive"):
            content = _other_archive(tmp_path_factory.mktemp("other"), kind)
        if how.get("text"):
            content = b"<html>moved</html>"
        server.files[_PATH] = little_server.File(content=content, hangs_after=how.get("hangs_after"))
    with pytest.raises(UserError, match=expected) as error:
        pretrained.find_weights("coco-d0")
    assert "\n" not in str(error.value)
    assert not [name for name in _cached(tmp_path) if not name.endswith((".part", ".part.json"))]


def test_after_a_damaged_archive_the_next_call_fetches_again(server, archive):
    server.files[_PATH] = little_server.File(content=archive[:100_000])
    with pytest.raises(UserError):
        pretrained.find_weights("coco-d0")
    server.files[_PATH] = little_server.File(content=archive, headers={"ETag": '"2"'})
    weights.load(pretrained.find_weights("coco-d0"))


def _other_archive(folder, kind):
    """Packs a checkpoint of a network with one variable, whole or damaged."""
    little_checkpoints.write_tensorflow1(folder / "model", {"dense/kernel": np.zeros((2, 2), np.float32)})
    if kind == "damaged":
        (folder / "model.index").write_bytes(b"no table")
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w:gz") as tar:
        tar.add(folder, arcname="efficientdet-d0")
    return body.getvalue()


def test_offline_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(pretrained.ADDRESS_VARIABLE, "http://127.0.0.1:9")
    monkeypatch.setattr(pretrained, "_ATTEMPTS", 1)
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9"):
        pretrained.find_weights("coco-d0")


@pytest.mark.parametrize(("name", "preset"), [("coco", ""), ("coco", "demo"), ("coco-d9", "")])
def test_an_unknown_model_is_told_what_there_is(name, preset):
    with pytest.raises(UserError, match="coco-d0, coco-d1"):
        pretrained.find_weights(name, preset)


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "coco-d0").write_bytes(b"")
    assert pretrained.find_weights("coco-d0") == (tmp_path / "coco-d0").relative_to(tmp_path)


def test_lite_is_published_elsewhere(server):
    with pytest.raises(UserError):
        pretrained.find_weights("coco-lite3x")
    assert server.asked[-1][1] == "/efficientdet/coco/efficientdet-lite3x.tgz"
