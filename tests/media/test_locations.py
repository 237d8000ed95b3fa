"""What words stand for, and files from the web: bounded in size and time, one line for each failure."""

import socket
import threading
import time

import little_server
import pytest

from efficientdet.errors import UserError
from efficientdet.media import locations


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with images, a video, and what is neither."""
    for name in ("b.jpg", "a.PNG", "c.mp4", "notes.txt", "inner/d.jpg", "inner/e.txt", "0", "x*.jpg", "none/f.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with little_server.serve() as server:
        yield server


@pytest.mark.parametrize(
    ("word", "found"),
    [
        pytest.param("b.jpg", [("b.jpg", "image")], id="an image"),
        pytest.param("c.mp4", [("c.mp4", "video")], id="a video"),
        pytest.param("notes.txt", [("notes.txt", "image")], id="a named file is judged by its content"),
        pytest.param(
            ".", [("a.PNG", "image"), ("b.jpg", "image"), ("c.mp4", "video"), ("x*.jpg", "image")], id="a folder"
        ),
        pytest.param("*.jpg", [("b.jpg", "image"), ("x*.jpg", "image")], id="a pattern"),
        pytest.param("**/*.jpg", [("b.jpg", "image"), ("inner/d.jpg", "image"), ("x*.jpg", "image")], id="all folders"),
        pytest.param("x*.jpg", [("x*.jpg", "image")], id="a file that is called like a pattern"),
        pytest.param("0", [("0", "image")], id="a file that is called like a camera"),
        pytest.param("1", [("camera 1", "camera")], id="a camera"),
        pytest.param("https://host/a%20b.jpg?key=s3cret", [("https://host/a%20b.jpg", "image")], id="an address"),
        pytest.param("rtsp://me:pw@host/live/1", [("rtsp://host/live/1", "stream")], id="a stream"),
        pytest.param("RTMPS://host/live", [("rtmps://host/live", "stream")], id="a stream, in capitals"),
        pytest.param("http://host/a.m3u8?key=1", [("http://host/a.m3u8", "stream")], id="a playlist on the web"),
        pytest.param("http://host/cam.MJPG", [("http://host/cam.MJPG", "stream")], id="a network camera"),
        pytest.param("http://me:pw@host:81/c.MOV", [("http://host:81/c.MOV", "video")], id="a video on the web"),
    ],
)
def test_words_stand_for_what_is_there(folder, word, found):
    assert [(medium.name, medium.kind) for medium in locations.find([word])] == found


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("no.jpg", r"`no\.jpg` does not exist"),
        ("none", "`none` has no images or videos"),
        ("*.gif", r"`\*\.gif` matches no images or videos"),
        ("1234", "`1234` does not exist"),
        ("x" * 300, "x` cannot be read: File name too long"),
        ("a\0b", "does not exist"),
        ("file:///etc/passwd", "is not a web address"),
        ("rtsp://", "is not a valid stream address; expected rtsp://host/"),
        ("rtsp://host:x/a", "is not a valid stream address"),
        ("ftp://host/a.jpg", "expected http://"),
        ("http://", "is not a web address"),
    ],
)
def test_what_stands_for_nothing_is_one_line(folder, word, said):
    with pytest.raises(UserError, match=said):
        locations.find([word])


@pytest.mark.parametrize(
    ("address", "stem"),
    [
        ("http://h/a/b.jpg", "b"),
        ("http://h/", "image"),
        ("http://h/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "passwd"),
        ("http://h/..%5c..%5cboot.ini", "boot"),
        ("http://h/.bashrc", "bashrc"),
        ("http://h/a%00%1b%5b31m%0ab.png", "a_31m_b"),
        ("http://h/" + "y" * 500 + ".jpg", "y" * 100),
        ("http://h/%e4%bd%a0.jpg", "你"),
    ],
)
def test_names_of_addresses_are_made_harmless(address, stem):
    assert locations.find([address])[0].stem == stem


def _fetch(address, tmp_path, **options):
    (medium,) = locations.find([address])
    return locations.fetch(medium, tmp_path, **options).path


def test_a_file_from_the_web_is_fetched(server, tmp_path):
    server.files["/a.png"] = little_server.File(content=b"abc" * 1000)
    server.files["/b.png"] = little_server.File(content=b"x" * 70_000, length="chunked")
    assert _fetch(f"{server.address}/a.png", tmp_path).read_bytes() == b"abc" * 1000
    assert _fetch(f"{server.address}/b.png?key=1", tmp_path).read_bytes() == b"x" * 70_000
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_not_on_the_web_is_left_as_it_is(folder, tmp_path):
    (medium,) = locations.find(["b.jpg"])
    assert locations.fetch(medium, tmp_path) is medium


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param({}, r"is larger than 50,000 bytes", id="too large, and says so"),
        pytest.param({"length": "chunked"}, r"is larger than 50,000 bytes", id="too large, and does not say so"),
        pytest.param({"cuts": [10_000]}, "was lost", id="broken off"),
        pytest.param({"hangs_after": 10_000}, r"did not arrive within 0\.5 s", id="too slow"),
        pytest.param({"statuses": [404]}, "does not exist", id="not there"),
        pytest.param({"statuses": [500]}, "the server responded with 500", id="broken"),
        pytest.param(
            {"statuses": [302] * 30, "headers": {"Location": "/a.png"}},
            "no usable response",
            id="redirected in a circle",
        ),
        pytest.param(
            {"statuses": [302], "headers": {"Location": "file:///etc/passwd"}},
            "no usable response",
            id="sent to a file",
        ),
    ],
)
def test_what_the_web_does_not_give_is_one_line_and_nothing_is_left(server, tmp_path, options, said):
    size = 40_000 if "cuts" in options or "hangs_after" in options else 60_000
    server.files["/a.png"] = little_server.File(**{"content": bytes(size)} | options)
    with pytest.raises(UserError, match=said) as caught:
        _fetch(f"{server.address}/a.png?key=s3cret", tmp_path, max_bytes=50_000, max_seconds=0.5)
    assert "s3cret" not in str(caught.value)
    server.closing.set()
    end = time.monotonic() + 5
    while list(tmp_path.iterdir()) and time.monotonic() < end:
        time.sleep(0.02)  # the late one is removed when its connection ends
    assert not list(tmp_path.iterdir())
    assert len(server.asked) <= 11


def test_a_server_that_drips_is_given_up(tmp_path, monkeypatch):
    """Each byte of its header comes soon enough, the whole never."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    is_over = threading.Event()

    def drip():
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not is_over.wait(0.05):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        began = time.monotonic()
        with pytest.raises(UserError, match=r"did not arrive within 0\.4 s"):
            _fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/a.png", tmp_path, max_seconds=0.4)
        assert time.monotonic() - began < 3
        is_over.set()
        thread.join()


def test_a_server_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(UserError, match="refused the connection"):
        _fetch(f"http://127.0.0.1:{port}/a.png", tmp_path)


def test_hidden_files_of_a_folder_are_left_out_and_folders_inside_are_found(tmp_path):
    for name in ("a.jpg", "._a.jpg", "b/c.jpg", ".b/d.jpg", "out/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [medium.path for medium in locations.find([tmp_path])] == [tmp_path / "a.jpg"]
    assert locations.find_inside(tmp_path, without=tmp_path / "b") == tmp_path / "out" / "a.jpg"
    assert locations.find_inside(tmp_path / "b") is None
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(UserError, match=r"only in subfolders, such as `.*c\.jpg`; use '.*/\*\*/\*'"):
        locations.find([tmp_path])
