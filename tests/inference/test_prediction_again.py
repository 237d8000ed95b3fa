"""A second `predict` into a directory: it goes on, joins or is refused; nothing earlier is replaced in silence."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientdet import cli
from efficientdet.errors import UserError
from efficientdet.inference import detector, journal, prediction

_ROOT = Path(__file__).resolve().parents[2]


def _images(folder, names, rng):
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.fromarray(rng.integers(0, 256, (40 + len(name), 70, 3), dtype=np.uint8)).save(folder / name)
    return folder


def _predict(weights, *sources, output, **options):
    return prediction.predict(weights, sources, output=output, **{"score_threshold": 0.2} | options)


def _contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def looks(monkeypatch):
    """Counts the images that any detector looks at."""
    seen = []
    detect = detector.Detector.detect

    def counting(self, images, **options):
        seen.append(len(images))
        return detect(self, images, **options)

    monkeypatch.setattr(detector.Detector, "detect", counting)
    return seen


def test_the_same_command_does_nothing_twice(finding_weights, tmp_path, rng, looks):
    _images(tmp_path / "in", ["a.png", "b.png", "c.png"], rng)
    first = _predict(finding_weights, tmp_path / "in", output=tmp_path / "out")
    before = _contents(tmp_path / "out")
    again = _predict(finding_weights, tmp_path / "in", output=tmp_path / "out")
    assert sum(looks) == 3
    assert again.num_kept == 3
    assert again.images == first.images
    assert _contents(tmp_path / "out") == before


@pytest.mark.parametrize("kept", [0, 1, 3, 4, 5, 6])
def test_an_interrupted_command_ends_as_one_that_was_not(finding_weights, tmp_path, rng, kept):
    """The journal of a process that was killed after `kept` lines and a half, and before the final file."""
    _images(tmp_path / "in", [f"{letter}.png" for letter in "abcdef"], rng)
    (tmp_path / "in" / "c.png").write_bytes(b"nothing")
    _predict(finding_weights, tmp_path / "in", output=tmp_path / "out", batch_size=2)
    whole = _contents(tmp_path / "out")
    lines = (tmp_path / "out" / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 7, "settings, five images, the end"
    (tmp_path / "out" / "predictions.jsonl").write_bytes(b"".join(lines[: kept + 1]) + lines[-2][:30] * (kept < 5))
    (tmp_path / "out" / "predictions.json").unlink()
    (tmp_path / "out" / ".partial-x.jpg").write_bytes(b"half")
    result = _predict(finding_weights, tmp_path / "in", output=tmp_path / "out", batch_size=2)
    assert _contents(tmp_path / "out") == whole
    assert len(result.images) == 5
    assert result.num_kept == min(kept, 5)


def test_other_sources_join_those_that_are_there(finding_weights, tmp_path, rng):
    one, two = (_images(tmp_path / name, ["x.png"], rng) for name in ("one", "two"))
    _predict(finding_weights, one, output=tmp_path / "out")
    drawn = (tmp_path / "out" / "x.jpg").read_bytes()
    result = _predict(finding_weights, two, output=tmp_path / "out")
    assert list(result.images) == [str(two / "x.png")]
    assert (tmp_path / "out" / "x.jpg").read_bytes() == drawn
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [Path(found["image"]).name for found in written.values()] == ["x.jpg", "x-2.jpg"]


def test_a_pattern_does_not_find_what_was_drawn(finding_weights, tmp_path, rng, monkeypatch, looks):
    monkeypatch.chdir(_images(tmp_path / "in", ["a.jpg", "b.jpg"], rng))
    for _ in range(2):
        result = _predict(finding_weights, "**/*.jpg", output=Path("out"))
        assert list(result.images) == ["a.jpg", "b.jpg"]
    assert sum(looks) == 2
    with pytest.raises(UserError, match="`sources` are all in the output folder `out`"):
        _predict(finding_weights, "out/*.jpg", output=Path("out"))


def test_other_weights_of_the_same_name_are_refused(finding_weights, tmp_path, rng):
    _images(tmp_path / "in", ["a.png"], rng)
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(finding_weights.read_bytes())
    _predict(weights, tmp_path / "in", output=tmp_path / "out")
    os.utime(weights, (1, 1))
    with pytest.raises(UserError, match="with different settings \\(the file of `weights` has changed\\)"):
        _predict(weights, tmp_path / "in", output=tmp_path / "out")


def test_a_file_that_changed_is_looked_at_again(finding_weights, tmp_path, rng, looks):
    _images(tmp_path / "in", ["a.png", "b.png"], rng)
    _predict(finding_weights, tmp_path / "in", output=tmp_path / "out", batch_size=1)
    _images(tmp_path / "in", ["b.png"], rng)
    result = _predict(finding_weights, tmp_path / "in", output=tmp_path / "out", batch_size=1)
    assert (sum(looks), result.num_kept) == (3, 1)
    assert list(json.loads((tmp_path / "out" / "predictions.json").read_text())) == list(result.images)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"score_threshold": 0.5}, r"`score_threshold` was 0\.2, now 0\.5"),
        ({"class_agnostic": True}, "`class_agnostic` was false, now true"),
        ({"tiles": (64, 64), "max_detections": 3}, r"`max_detections` was null, now 3, and 1 more"),
        ({"format": "yolo"}, '`format` was "json", now "yolo"'),
    ],
)
def test_other_settings_are_refused_and_replace_on_request(finding_weights, tmp_path, rng, options, said):
    _images(tmp_path / "in", ["a.png", "b.png"], rng)
    _predict(finding_weights, tmp_path / "in", output=tmp_path / "out")
    before = _contents(tmp_path / "out")
    with pytest.raises(UserError, match=said) as caught:
        _predict(finding_weights, tmp_path / "in" / "b.png", output=tmp_path / "out", **options)
    assert "--overwrite" in str(caught.value)
    assert _contents(tmp_path / "out") == before
    _predict(finding_weights, tmp_path / "in" / "b.png", output=tmp_path / "out", overwrite=True, **options)
    assert not (tmp_path / "out" / "a.jpg").exists(), "no drawing without its line"


def test_what_is_there_and_no_journal_knows_stays(finding_weights, tmp_path, rng):
    _images(tmp_path / "in", ["a.png"], rng)
    (tmp_path / "out").mkdir()
    for name in ("a.jpg", "predictions.json"):
        (tmp_path / "out" / name).write_text("{}")
        with pytest.raises(UserError, match="--overwrite"):
            _predict(finding_weights, tmp_path / "in", output=tmp_path / "out")
        assert _contents(tmp_path / "out") == {name: b"{}"}
        (tmp_path / "out" / name).unlink()


@pytest.mark.parametrize("content", [b"{}\n", b'{"version": 2, "settings": {}}\n[]\n', b"\xff\n", b'{"version": 9}\n'])
def test_a_journal_that_is_not_ours_is_one_line(tmp_path, content):
    (tmp_path / "predictions.jsonl").write_bytes(content)
    with pytest.raises(
        UserError, match=r"predictions\.jsonl` (is damaged|was written by another version).*--overwrite"
    ):
        journal.read(tmp_path, {})


def test_two_at_once_are_refused(tmp_path):
    first, second = journal.read(tmp_path, {}), journal.read(tmp_path, {})
    with first.writing(), pytest.raises(UserError, match="is being written by another `predict`"), second.writing():
        pass


@pytest.mark.slow
def test_a_process_that_is_killed_twice_loses_nothing(finding_weights, tmp_path, rng, monkeypatch):
    folder = _images(tmp_path / "in", [f"{number:03d}.png" for number in range(60)], rng)
    options = ["--score-threshold", "0.2", "--batch-size", "4", "--runtime", "keras", "--output", "out"]
    words = [sys.executable, "-m", "efficientdet", "predict", str(finding_weights), str(folder), *options]
    environment = os.environ | {"PYTHONPATH": str(_ROOT / "src")}
    for run in ("killed", "whole"):
        (tmp_path / run).mkdir()
    out, dice = tmp_path / "killed" / "out", random.Random(0)
    for least in (5, 30, None):
        started = {"cwd": tmp_path / "killed", "env": environment, "stdout": subprocess.DEVNULL}
        with subprocess.Popen(words, stderr=subprocess.DEVNULL, **started) as process:
            if least is None:
                assert process.wait(timeout=240) == 0
                break
            wanted = least + dice.randrange(20)
            while process.poll() is None and not _num_lines(out / "predictions.jsonl") >= wanted:
                time.sleep(0.005)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        assert not (out / "predictions.json").exists()
    monkeypatch.chdir(tmp_path / "whole")
    _predict(finding_weights, folder, output=Path("out"), batch_size=4, runtime="keras")
    killed, whole = (_contents(path) for path in (out, Path("out")))
    assert killed.keys() == whole.keys()
    assert killed["predictions.json"] == whole["predictions.json"]
    assert all(killed[name] == content for name, content in whole.items() if name.endswith(".jpg"))


def _num_lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_ctrl_c_says_how_to_go_on(finding_weights, tmp_path, rng, monkeypatch, capsys):
    _images(tmp_path / "in", ["a.png", "b.png"], rng)
    detect = detector.Detector.detect
    calls = []

    def interrupted(self, images, **options):
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return detect(self, images, **options)

    monkeypatch.setattr(detector.Detector, "detect", interrupted)
    words = ["predict", str(finding_weights), str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert cli.main([*words, "--batch-size", "1"]) == 130
    assert "interrupted, 1 of 2 sources done; run the same command to resume" in capsys.readouterr().err
    assert cli.main([*words, "--batch-size", "1"]) == 0
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 2
