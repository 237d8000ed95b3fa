"""`predict`: images, videos, cameras and addresses in; drawn copies, a report or lines of JSON out."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import little_server
import little_videos
import numpy as np
import pytest
from PIL import Image

from efficientdet import cli
from efficientdet.errors import UserError
from efficientdet.inference import prediction
from efficientdet.media import images, video

_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def photo(rng):
    return rng.integers(0, 256, (90, 70, 3), dtype=np.uint8)


def _predict(weights, *sources, output, **options):
    return prediction.predict(weights, sources, output=output, **{"score_threshold": 0.2} | options)


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def _lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_images_are_drawn_and_written_down(finding_weights, photo, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(photo).save(folder / "one.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: upright it is 70 high and 90 wide
    Image.fromarray(photo).save(folder / "two.jpg", exif=exif)
    result = _predict(finding_weights, folder, output=tmp_path / "out")
    assert _names(tmp_path / "out") == ["one.jpg", "predictions.json", "predictions.jsonl", "two.jpg"]
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert written == result.images
    first, second = written[str(folder / "one.png")], written[str(folder / "two.jpg")]
    assert (first["height"], first["width"]) == (90, 70)
    assert (second["height"], second["width"]) == (70, 90)
    assert images.read_image(tmp_path / "out" / "two.jpg", "two").shape == (70, 90, 3)
    best = first["detections"][0]
    assert best["class"] in {"cat", "dog", "cow"}
    assert best["category_id"] in {5, 9, 11}
    assert 0 <= best["box"]["x1"] <= best["box"]["x2"] <= 70
    assert 0 <= best["box"]["y1"] <= best["box"]["y2"] <= 90


def test_classes_tiles_and_batches_reach_the_detector(finding_weights, photo, tmp_path):
    for number in range(3):
        Image.fromarray(photo).save(tmp_path / f"{number}.png")
    options = {"classes": ("dog",), "tiles": (64, 64), "batch_size": 2}
    found = _predict(finding_weights, f"{tmp_path}/*.png", output=tmp_path / "out", **options).images
    assert len(found) == 3
    answers = [each["detections"] for each in found.values()]
    assert {detection["class"] for detection in answers[0]} == {"dog"}
    assert answers[0] == answers[1] == answers[2]
    whole = _predict(finding_weights, tmp_path / "0.png", output=tmp_path / "whole", classes=("dog",)).images
    assert next(iter(whole.values()))["detections"] != answers[0]


def test_images_of_the_same_name_do_not_replace_each_other(finding_weights, photo, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.fromarray(photo).save(tmp_path / folder / "x.png")
    _predict(finding_weights, tmp_path / "a" / "x.png", tmp_path / "b" / "x.png", output=tmp_path / "out")
    assert _names(tmp_path / "out") == ["predictions.json", "predictions.jsonl", "x-2.jpg", "x.jpg"]


@pytest.mark.parametrize("output", ["out", "-"])
def test_sources_that_cannot_be_read_are_left_out_and_named(finding_weights, photo, tmp_path, capsys, output):
    for name in ("a.png", "z.png"):
        Image.fromarray(photo).save(tmp_path / name)
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:2000])
    where = "-" if output == "-" else str(tmp_path / output)
    assert cli.main(["predict", str(finding_weights), str(tmp_path), "--output", where]) == 1
    shown = capsys.readouterr()
    assert "Skipped 3 of 5 sources:" in shown.err
    for name in ("bad.jpg", "bad.mp4", "cut.png"):
        assert f"{name}` " in shown.err
        assert name not in shown.out
    assert "a.png" in shown.out
    assert "z.png" in shown.out
    if output != "-":
        written = json.loads((tmp_path / "out" / "predictions.json").read_text())
        assert list(written) == [str(tmp_path / "a.png"), str(tmp_path / "z.png")]
        assert (tmp_path / "out" / "skipped.txt").read_text().count("\n") == 3


def test_if_nothing_can_be_read_nothing_is_written(finding_weights, tmp_path):
    for name in ("bad.jpg", "worse.jpg"):
        (tmp_path / name).write_bytes(b"\xff\xd8\xff nothing")
    with pytest.raises(UserError, match=r"bad\.jpg` .* The other source cannot be read either"):
        _predict(finding_weights, tmp_path, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_original_is_never_replaced(finding_weights, photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "a.jpg")
    little_videos.write(tmp_path / "b.mp4", 2)
    for name in ("a.jpg", "b.mp4"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(UserError, match=rf"where the source `{name}` would be overwritten"):
            _predict(finding_weights, tmp_path / name, output=tmp_path)
        assert (tmp_path / name).read_bytes() == before
    assert _names(tmp_path) == ["a.jpg", "b.mp4"]


def test_a_video_is_written_with_boxes_and_a_line_a_frame(finding_weights, tmp_path):
    drawn = little_videos.write(tmp_path / "a.mkv", 20, size=(64, 96))
    result = _predict(finding_weights, tmp_path / "a.mkv", output=tmp_path / "out")
    assert _names(tmp_path / "out") == ["a.jsonl", "a.mp4", "predictions.json", "predictions.jsonl"]
    facts = result.videos[str(tmp_path / "a.mkv")]
    assert (facts["frames"], facts["height"], facts["width"], facts["seconds"]) == (20, 64, 96, 1.9)
    lines = _lines((tmp_path / "out" / "a.jsonl").read_text())
    assert [line["frame"] for line in lines] == list(range(20))
    assert [line["seconds"] for line in lines] == pytest.approx(np.arange(20) / 10)
    assert all(line["detections"] for line in lines)
    with video.open_video(tmp_path / "out" / "a.mp4", "a") as film:
        frames = list(film.frames)
    assert (film.size, film.rate, len(frames)) == ((64, 96), 10, 20)
    changed = [np.abs(frame.image.astype(int) - before).mean() for frame, before in zip(frames, drawn, strict=True)]
    assert min(changed) > 8, "boxes are drawn"
    assert "20 frames" in result.text()


def test_a_video_that_breaks_in_its_middle_leaves_nothing_half(finding_weights, tmp_path):
    little_videos.write(tmp_path / "a.mp4", 40)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 300] = bytes(300)
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.mp4` .*damaged"):
        _predict(finding_weights, tmp_path / "a.mp4", output=tmp_path / "out")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "a.mp4"]


def test_frames_can_be_limited(finding_weights, tmp_path):
    little_videos.write(tmp_path / "a.mp4", 12)
    result = _predict(finding_weights, tmp_path / "a.mp4", output=tmp_path / "out", max_frames=5)
    assert result.videos[str(tmp_path / "a.mp4")]["frames"] == 5
    with pytest.raises(UserError, match="`max_frames` is 0"):
        _predict(finding_weights, tmp_path / "a.mp4", output=tmp_path / "out", max_frames=0)


@pytest.fixture
def camera(monkeypatch):
    """A camera that FFmpeg draws: it never ends."""
    monkeypatch.setattr(video, "camera_address", lambda number: ("testsrc=size=96x64:rate=10", "lavfi"))


def test_a_camera_is_written_as_far_as_asked(finding_weights, camera, tmp_path):
    result = _predict(finding_weights, "0", output=tmp_path / "out", max_frames=4)
    assert _names(tmp_path / "out") == ["camera-0.jsonl", "camera-0.mp4", "predictions.json", "predictions.jsonl"]
    assert result.videos["camera 0"]["frames"] == 4


def test_a_network_camera_is_looked_at_as_it_comes(finding_weights, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with little_videos.network_camera() as address:
        result = _predict(finding_weights, f"{address}?key=s3cret", output=tmp_path / "out", max_frames=3)
        assert result.videos[address]["frames"] == 3
        assert _names(tmp_path / "out") == ["live.jsonl", "live.mp4", "predictions.json", "predictions.jsonl"]
        again = _predict(finding_weights, f"{address}?key=s3cret", output=tmp_path / "out", max_frames=3)
    assert list(again.videos) == [f"{address} (2)"], "what a camera saw before stays"
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 2
    assert "s3cret" not in (tmp_path / "out" / "predictions.jsonl").read_text()
    with little_videos.network_camera() as address:
        nameless = address.removesuffix("/live.mjpg") + "/video"
        result = _predict(finding_weights, nameless, output=tmp_path / "nameless", max_frames=2)
        assert result.videos[nameless]["frames"] == 2
    with pytest.raises(UserError, match=r"/live\.mjpg` is not a stream that can be opened") as caught:
        _predict(finding_weights, "rtsp://me:s3cret@127.0.0.1:9/live.mjpg", output=tmp_path / "no")
    assert "s3cret" not in str(caught.value)
    assert not (tmp_path / "no").exists()


def test_ctrl_c_ends_a_camera_and_what_is_written_is_whole(finding_weights, camera, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    threads = threading.active_count()

    def press():
        while not list((tmp_path / "out").glob(".partial-*.jsonl")):
            if is_over.wait(0.02):
                return
        while not is_over.wait(0.2):
            os.kill(os.getpid(), signal.SIGINT)
            return

    is_over = threading.Event()
    thread = threading.Thread(target=press)
    thread.start()
    result = _predict(finding_weights, "0", output=tmp_path / "out", max_frames=100_000)
    is_over.set()
    thread.join()
    number = result.videos["camera 0"]["frames"]
    assert 0 < number < 100_000
    with video.open_video(tmp_path / "out" / "camera-0.mp4", "camera") as film:
        assert len(list(film.frames)) == number
    assert signal.getsignal(signal.SIGINT) is before
    assert threading.active_count() <= threads + 1


def test_an_image_from_the_web_is_judged_as_a_file(finding_weights, photo, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    Image.fromarray(photo).save(tmp_path / "a.png")
    with little_server.serve() as server:
        server.files["/a.png"] = little_server.File(content=(tmp_path / "a.png").read_bytes())
        server.files["/b.png"] = little_server.File(content=b"<html>not found</html>")
        result = _predict(finding_weights, f"{server.address}/a.png?key=s3cret", output=tmp_path / "out")
        assert list(result.images) == [f"{server.address}/a.png"]
        assert _names(tmp_path / "out") == ["a.jpg", "predictions.json", "predictions.jsonl"]
        local = _predict(finding_weights, tmp_path / "a.png", output=tmp_path / "local")
        found, expected = (next(iter(each.images.values())) for each in (result, local))
        assert found["detections"] == expected["detections"] != []
        with pytest.raises(UserError, match=r"/b\.png` is not a supported image"):
            _predict(finding_weights, f"{server.address}/b.png", output=tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_lines_of_json_go_to_standard_output_alone(finding_weights, photo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(photo).save("a.png")
    little_videos.write(tmp_path / "b.mp4", 3)
    for flags in ([], ["--json"]):
        assert cli.main(["predict", str(finding_weights), "a.png", "b.mp4", "--output", "-", *flags]) == 0
        lines = _lines(capsys.readouterr().out)
        assert [(line["source"], line.get("frame")) for line in lines] == [
            ("a.png", None),
            *(("b.mp4", number) for number in range(3)),
        ]
        assert (lines[0]["height"], lines[1]["width"]) == (90, 64)
    assert _names(tmp_path) == ["a.png", "b.mp4"]


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_it_quietly(finding_weights, photo, tmp_path):
    for number in range(40):
        Image.fromarray(photo).save(tmp_path / f"{number}.png")
    words = [sys.executable, "-m", "efficientdet", "predict", str(finding_weights), str(tmp_path)]
    options = ["--output", "-", "--score-threshold", "0", "--batch-size", "1", "--runtime", "keras"]
    environment = os.environ | {"PYTHONPATH": str(_ROOT / "src")}
    with subprocess.Popen(
        [*words, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert json.loads(process.stdout.readline())["source"].endswith(".png")
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 0
    assert "Traceback" not in said
    assert "BrokenPipe" not in said


@pytest.mark.parametrize(
    "name", ["[red]a[bold].png", "a\x1b[2Jb.png", "a\nb.png", "-rf.png", "$(id).png", "é" * 120 + ".png"]
)
def test_hostile_names_are_only_names(finding_weights, photo, tmp_path, name, capsys):
    Image.fromarray(photo).save(tmp_path / name)
    assert cli.main(["predict", str(finding_weights), str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert "detections, " in shown.out
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert list(written) == [str(tmp_path / name)]
    assert len(_names(tmp_path / "out")) == 3
    (tmp_path / name).write_bytes(b"damaged")
    assert cli.main(["predict", str(finding_weights), str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("output", ["out", "-"])
def test_all_frames_of_an_animation_are_looked_at(finding_weights, tmp_path, rng, output, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    frames = [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(3)]
    frames[0].save("a.tif", save_all=True, append_images=frames[1:])
    frames[1].save("a-002.png")
    words = ["predict", str(finding_weights), "a.tif", "a-002.png", "--output", output, "--score-threshold", "0.2"]
    assert cli.main([*words, "--batch-size", "2"]) == 0
    shown = capsys.readouterr().out
    if output == "-":
        found = {(line["source"], line.get("frame")): line["detections"] for line in _lines(shown)}
        assert list(found) == [("a.tif", 0), ("a.tif", 1), ("a.tif", 2), ("a-002.png", None)]
        first, _, _, last = found.values()
        assert first != last
        return
    written = json.loads(Path("out/predictions.json").read_text())
    assert list(written) == ["a.tif#1", "a.tif#2", "a.tif#3", "a-002.png"]
    assert [Path(one["image"]).name for one in written.values()] == [
        "a-001.jpg",
        "a-002-frame.jpg",
        "a-003.jpg",
        "a-002.jpg",
    ]
    assert len(_predict(finding_weights, "a.tif", output=tmp_path / "two", max_frames=2).images) == 2
    assert _predict(finding_weights, "a.tif", output=tmp_path / "two", max_frames=2).num_kept == 1


def test_annotations_are_a_dataset_of_copies(finding_weights, photo, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.jpg"):
        Image.fromarray(photo).save(tmp_path / "in" / name)
    little_videos.write(tmp_path / "in" / "c.mp4", 2)
    result = _predict(finding_weights, tmp_path / "in", output=tmp_path / "out", format="coco")
    assert "`--format coco` supports only images." in result.skipped[str(tmp_path / "in" / "c.mp4")]
    assert _names(tmp_path / "out") == ["annotations", "images", "predictions.jsonl", "skipped.txt"]
    assert _names(tmp_path / "out" / "images") == ["a.png", "b.jpg"]
    assert (tmp_path / "out" / "images" / "a.png").read_bytes() == (tmp_path / "in" / "a.png").read_bytes()
    document = json.loads((tmp_path / "out" / "annotations" / "instances_train.json").read_text())
    assert len(document["annotations"]) == sum(len(one["detections"]) for one in result.images.values()) > 0
    Image.fromarray(photo).save(tmp_path / "in" / "d.png")
    with pytest.raises(UserError, match="may have been corrected since"):
        _predict(finding_weights, tmp_path / "in", output=tmp_path / "out", format="coco")
    for output, said in ((tmp_path / "in", "contains sources"), (tmp_path / "out" / "images", "is not empty")):
        with pytest.raises(UserError, match=said):
            _predict(finding_weights, tmp_path / "in", output=output, format="yolo")
    with pytest.raises(UserError, match="`format` is csv, which cannot be printed"):
        _predict(finding_weights, tmp_path / "in", output=Path("-"), format="csv")


def test_options_of_the_command_line_reach_the_detector(finding_weights, photo, tmp_path, capsys):
    Image.fromarray(photo).save(tmp_path / "a.png")
    words = ["predict", str(finding_weights), str(tmp_path / "a.png"), "--output", "-", "--score-threshold", "0.2"]
    found = []
    for options in (
        [],
        ["--max-detections", "2"],
        ["--class-agnostic"],
        ["--class-thresholds", "dog", "1", "cat", "1"],
    ):
        assert cli.main([*words, *options]) == 0
        found.append(_lines(capsys.readouterr().out)[0]["detections"])
    everything, two, agnostic, sure = found
    assert two == everything[:2]
    assert 0 < len(agnostic) < len(everything)
    assert sure == [one for one in everything if one["class"] == "cow"]


@pytest.mark.parametrize(("threshold", "is_said"), [("0.99", True), ("0.2", False)])
def test_where_nothing_is_found_the_threshold_is_named(finding_weights, photo, tmp_path, capsys, threshold, is_said):
    Image.fromarray(photo).save(tmp_path / "a.png")
    words = ["predict", str(finding_weights), str(tmp_path / "a.png"), "--output", str(tmp_path / "out")]
    assert cli.main([*words, "--score-threshold", threshold]) == 0
    assert ("a lower `--score-threshold`" in capsys.readouterr().err) is is_said


def test_folders_that_are_left_out_are_named(finding_weights, photo, tmp_path, capsys):
    (tmp_path / "in" / "more").mkdir(parents=True)
    for name in ("a.png", "more/b.png"):
        Image.fromarray(photo).save(tmp_path / "in" / name)
    result = _predict(finding_weights, tmp_path / "in", "https://127.0.0.1:9/" + 300 * "a", output=tmp_path / "out")
    assert list(result.images) == [str(tmp_path / "in" / "a.png")]
    said = f"Skipped the subfolders of `{tmp_path / 'in'}`, such as the one with "
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_in_python_paths_may_be_strings_and_a_source_alone(finding_weights, photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "a.png")
    source, output = str(tmp_path / "a.png"), str(tmp_path / "out")
    assert list(prediction.predict(str(finding_weights), source, output=output).images) == [source]
    assert prediction.predict(str(finding_weights), [source], output=output).num_kept == 1
