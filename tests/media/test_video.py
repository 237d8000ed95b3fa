"""Videos, read and written by the real libraries: times, sizes, rotation, damage."""

import sys
from fractions import Fraction

import little_videos
import numpy as np
import pytest

from efficientdet.errors import UserError
from efficientdet.media import video


def _read(path):
    with video.open_video(path, path.name) as film:
        return film, list(film.frames)


def _copy(source, target):
    """Writes the frames of a video as `predict` does."""
    with video.open_video(source, source.name) as film, video.write_video(target, film) as writer:
        for frame in film.frames:
            writer.write(frame.image, frame.ticks)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.webm", "libvpx-vp9")]
)
def test_common_videos_are_read_frame_by_frame(tmp_path, name, codec):
    drawn = little_videos.write(tmp_path / name, codec=codec)
    film, frames = _read(tmp_path / name)
    assert (film.size, film.rate, film.num_frames, len(frames)) == ((48, 64), 10, 12, 12)
    np.testing.assert_allclose([frame.seconds for frame in frames], np.arange(12) / 10, atol=1e-3)
    for frame, expected in zip(frames, drawn, strict=True):
        assert frame.image.dtype == np.uint8
        # Lossy, and colour at half the resolution.
        assert np.abs(frame.image.astype(int) - expected).mean() < 8


@pytest.mark.parametrize("rate", [Fraction(10), Fraction(30000, 1001), Fraction(60)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_what_is_written_has_the_rate_size_and_images_of_the_original(tmp_path, rate, suffix):
    little_videos.write(tmp_path / f"a{suffix}", rate=rate)
    _copy(tmp_path / f"a{suffix}", tmp_path / "b.mp4")
    (before, frames), (after, copies) = _read(tmp_path / f"a{suffix}"), _read(tmp_path / "b.mp4")
    assert (after.size, len(copies)) == (before.size, len(frames))
    assert float(after.rate) == pytest.approx(float(rate), rel=0.01)
    for frame, copy in zip(frames, copies, strict=True):
        assert copy.seconds == pytest.approx(frame.seconds, abs=1e-3)
        assert np.abs(copy.image.astype(int) - frame.image).mean() < 4


def test_a_variable_rate_stays_variable(tmp_path):
    ticks = [0, 40, 80, 500, 540, 1300, 1320, 2000, 2040, 2100, 2500, 2520]
    little_videos.write(tmp_path / "a.mp4", ticks=ticks)
    _copy(tmp_path / "a.mp4", tmp_path / "b.mp4")
    for name in ("a.mp4", "b.mp4"):
        _, frames = _read(tmp_path / name)
        np.testing.assert_allclose([1000 * frame.seconds for frame in frames], ticks, atol=1)


def test_an_odd_side_gains_a_pixel(tmp_path):
    little_videos.write(tmp_path / "a.mkv", size=(47, 63), codec="ffv1")
    _copy(tmp_path / "a.mkv", tmp_path / "b.mp4")
    assert _read(tmp_path / "a.mkv")[0].size == (47, 63)
    assert _read(tmp_path / "b.mp4")[0].size == (48, 64)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_video_that_was_held_on_its_side_is_upright(tmp_path, rotation):
    drawn = little_videos.write(tmp_path / "a.mp4", 2, rotation=rotation)
    film, frames = _read(tmp_path / "a.mp4")
    expected = np.rot90(drawn[0], rotation // 90)
    assert film.size == frames[0].image.shape[:2] == expected.shape[:2]
    assert np.abs(frames[0].image.astype(int) - expected).mean() < 8


def _cut(content):
    return content[: len(content) * 6 // 10]


def _blank(content):
    middle = len(content) // 2
    return content[:middle] + bytes(300) + content[middle + 300 :]


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        pytest.param("a.mp4", _cut, "not a supported video, or is damaged", id="an MP4 without its end"),
        pytest.param("a.mkv", _cut, r"is truncated: it ends after \d\.\d of 4\.0 s", id="a Matroska without its end"),
        pytest.param("a.mp4", _blank, "damaged", id="a hole"),
        pytest.param("a.mp4", lambda _: b"no video at all", "not a supported video", id="text"),
        pytest.param("a.mp4", lambda _: b"", "not a supported video", id="empty"),
    ],
)
def test_a_damaged_video_is_one_line(tmp_path, name, damage, said):
    path = tmp_path / name
    little_videos.write(path, 40)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=said) as caught:
        _read(path)
    assert str(caught.value).startswith(f"`{name}` ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{secret}\n#EXT-X-ENDLIST\n", id="HLS"),
        pytest.param("ffconcat version 1.0\nfile '{secret}'\n", id="concatenation"),
    ],
)
def test_a_list_of_other_files_is_not_followed(tmp_path, content):
    little_videos.write(tmp_path / "secret.ts", codec="mpeg2video")
    for name in ("list.mp4", "list.m3u8", "list.ffconcat"):
        (tmp_path / name).write_text(content.format(secret=tmp_path / "secret.ts"))
        with pytest.raises(UserError, match="not a supported video"):
            _read(tmp_path / name)


def test_a_file_that_is_missing_and_a_camera_that_is_not_there_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"a\.mp4` is missing"):
        _read(tmp_path / "a.mp4")
    with (
        pytest.raises(
            UserError, match=r"`camera 97`( is not a camera that can be opened|: cameras are supported only)"
        ),
        video.open_camera(97),
    ):
        pass


def test_sound_alone_is_no_video(tmp_path):
    import av

    with av.open(str(tmp_path / "a.mkv"), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    with pytest.raises(UserError, match="it has no video track"):
        _read(tmp_path / "a.mkv")


def test_without_pyav_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"pip install 'efficientdet-keras\[video\]'"):
        _read(tmp_path / "a.mp4")
