"""Files from the web, from a real server: whole or not at all, resumed, checked, one line for each failure."""

import concurrent.futures
import hashlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import time

import little_server
import numpy as np
import pytest

from efficientdet.errors import UserError
from efficientdet.storage import web

CONTENT = np.random.default_rng(0).bytes(1_000_000)
OTHER = np.random.default_rng(1).bytes(1_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with little_server.serve() as server:
        yield server


def _offer(server, **options):
    """Serves a file and returns it with its address."""
    file = little_server.File(**{"content": CONTENT} | options)
    server.files["/a.bin"] = file
    return file, f"{server.address}/a.bin"


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def _fail(url, path, **options):
    """Fetches what cannot be fetched and returns what a person reads."""
    with pytest.raises(UserError) as caught:
        web.fetch(url, path, **options)
    assert "\n" not in str(caught.value)
    assert "`" in str(caught.value)
    return str(caught.value)


def test_a_file_arrives_whole_and_nothing_is_left_beside_it(server, tmp_path, capsys):
    _, url = _offer(server)
    path = tmp_path / "new" / "a.bin"
    assert web.fetch(url, path, sha256=SHA256.upper(), size=len(CONTENT)) == path
    assert path.read_bytes() == CONTENT
    assert _names(path.parent) == ["a.bin"]
    assert "Fetching a.bin: 1.0/1.0 MB" in capsys.readouterr().err


def test_a_file_that_is_there_is_not_asked_for(server, tmp_path):
    _, url = _offer(server)
    web.fetch(url, tmp_path / "a.bin")
    web.fetch(url, tmp_path / "a.bin", sha256=SHA256)
    assert len(server.asked) == 1


def test_an_empty_file_arrives(server, tmp_path):
    _, url = _offer(server, content=b"")
    assert web.fetch(url, tmp_path / "a.bin", size=0).read_bytes() == b""


@pytest.mark.parametrize("mark", ["ETag", "Last-Modified"])
def test_a_connection_that_is_cut_is_gone_on_with(server, tmp_path, mark):
    headers = {mark: '"1"' if mark == "ETag" else "Wed, 21 Oct 2015 07:28:00 GMT"}
    _, url = _offer(server, cuts=[300_000, 200_000], headers=headers)
    web.fetch(url, tmp_path / "a.bin", sha256=SHA256)
    # Each time the last byte that is there is asked for once more.
    assert [headers.get("Range") for headers in server.gets()] == [None, "bytes=299999-", "bytes=499998-"]
    assert server.gets()[1]["If-Range"] == headers[mark]
    assert server.num_sent == len(CONTENT) + 2


def test_a_later_call_goes_on_where_one_broke_off(server, tmp_path):
    file, url = _offer(server, cuts=[300_000])
    message = _fail(url, tmp_path / "a.bin", attempts=1)
    assert "the first 300,000 bytes are kept" in message
    assert _names(tmp_path) == ["a.bin.part", "a.bin.part.json"]
    file.cuts = []
    web.fetch(url, tmp_path / "a.bin", sha256=SHA256)
    assert server.num_sent == len(CONTENT) + 1
    assert _names(tmp_path) == ["a.bin"]


def test_a_killed_process_is_gone_on_with(server, tmp_path):
    file, url = _offer(server, hangs_after=300_000)
    program = (
        "import sys, pathlib; from efficientdet.storage import web; web.fetch(sys.argv[1], pathlib.Path(sys.argv[2]))"
    )
    with subprocess.Popen([sys.executable, "-c", program, url, str(tmp_path / "a.bin")]) as process:
        _wait_for(lambda: server.num_sent == 300_000)
        time.sleep(0.2)  # for the bytes to be read from the socket
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "a.bin").exists()
    file.hangs_after = None
    web.fetch(url, tmp_path / "a.bin", sha256=SHA256)
    assert "Range" in server.gets()[1]
    assert _names(tmp_path) == ["a.bin"]


def _wait_for(condition):
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.01)


def test_a_part_that_only_lacks_its_name_costs_one_byte(server, tmp_path):
    _, url = _offer(server)
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    notes = {"url": url, "version": '"1"', "size": len(CONTENT)}
    (tmp_path / "a.bin.part.json").write_text(json.dumps(notes))
    web.fetch(url, tmp_path / "a.bin", sha256=SHA256)
    assert server.num_sent == 1


def test_a_server_without_ranges_sends_everything_again(server, tmp_path):
    _, url = _offer(server, cuts=[300_000], knows_ranges=False)
    web.fetch(url, tmp_path / "a.bin", sha256=SHA256)
    assert server.num_sent == 300_000 + len(CONTENT)


@pytest.mark.parametrize("knows_if_range", [True, False])
@pytest.mark.parametrize("content", [OTHER, OTHER[:400_000], OTHER[:200_000]], ids=["as long", "shorter", "too short"])
def test_a_file_that_changes_in_between_is_begun_again(server, tmp_path, content, knows_if_range):
    file, url = _offer(server, cuts=[300_000])
    _fail(url, tmp_path / "a.bin", attempts=1)
    file.content, file.headers, file.knows_if_range = content, {"ETag": '"2"'}, knows_if_range
    assert web.fetch(url, tmp_path / "a.bin").read_bytes() == content
    assert "Range" in server.gets()[1]


def test_a_shorter_file_is_seen_though_the_server_says_nothing_of_its_version(server, tmp_path):
    file, url = _offer(server, cuts=[300_000])
    _fail(url, tmp_path / "a.bin", attempts=1)
    file.content, file.headers, file.knows_if_range = OTHER[:400_000], {}, False
    assert web.fetch(url, tmp_path / "a.bin").read_bytes() == file.content


def test_an_answer_to_another_question_is_not_appended(server, tmp_path):
    _, url = _offer(server, cuts=[300_000, 300_000], shift=5)
    _fail(url, tmp_path / "a.bin", attempts=2)
    assert not (tmp_path / "a.bin").exists()
    web.fetch(url, tmp_path / "a.bin", sha256=SHA256)


def test_a_server_may_send_less_than_was_asked_for(server, tmp_path):
    _, url = _offer(server, cuts=[300_000], pieces=[100_000])
    web.fetch(url, tmp_path / "a.bin", sha256=SHA256)
    assert [headers.get("Range") for headers in server.gets()] == [None, "bytes=299999-", "bytes=399998-"]


def test_a_long_download_may_break_off_more_often_than_a_short_one(server, tmp_path):
    content = np.random.default_rng(2).bytes(6_000_000)
    _, url = _offer(server, content=content, cuts=[1_200_000] * 4)
    assert web.fetch(url, tmp_path / "a.bin", attempts=2).read_bytes() == content
    assert len(server.asked) == 5


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"1"'}], ids=["no version", "weak version"])
def test_a_part_of_an_unknown_version_is_begun_again(server, tmp_path, headers):
    _, url = _offer(server, cuts=[300_000], headers=headers)
    web.fetch(url, tmp_path / "a.bin", sha256=SHA256)
    assert [headers.get("Range") for headers in server.gets()] == [None, None]


@pytest.mark.parametrize(
    "notes", [None, "{", "[]", '{"url": 1}', '{"url": "http://a/a.bin", "version": "\\"1\\"", "size": 1000000}']
)
def test_a_part_without_its_notes_is_begun_again(server, tmp_path, notes):
    _, url = _offer(server)
    (tmp_path / "a.bin.part").write_bytes(OTHER[:300_000])
    if notes is not None:
        (tmp_path / "a.bin.part.json").write_text(notes)
    web.fetch(url, tmp_path / "a.bin", sha256=SHA256)


@pytest.mark.parametrize("length", [None, "chunked"])
def test_a_body_that_is_cut_each_time_is_given_up(server, tmp_path, length):
    # Without a version each attempt begins again and nothing ever gets further.
    _, url = _offer(server, cuts=[300_000] * 3, headers={}, length=length)
    message = _fail(url, tmp_path / "a.bin", attempts=2)
    assert "try again later" in message
    assert "kept" not in message
    assert len(server.asked) == 2
    assert not (tmp_path / "a.bin").exists()


def test_a_body_that_is_shorter_than_announced_is_no_file(server, tmp_path):
    _, url = _offer(server, length=len(CONTENT) + 5, headers={})
    _fail(url, tmp_path / "a.bin", attempts=2)
    assert not (tmp_path / "a.bin").exists()


def test_a_body_in_chunks_arrives(server, tmp_path):
    _, url = _offer(server, length="chunked")
    assert web.fetch(url, tmp_path / "a.bin").read_bytes() == CONTENT
    _fail(url, tmp_path / "b.bin", max_bytes=999_999)
    assert _names(tmp_path) == ["a.bin"]


def test_a_wrong_checksum_is_said_and_the_file_removed(server, tmp_path):
    file, url = _offer(server, content=OTHER)
    message = _fail(url, tmp_path / "a.bin", sha256=SHA256)
    assert f"instead of {SHA256}, so it was deleted" in message
    assert _names(tmp_path) == []
    file.content = CONTENT
    web.fetch(url, tmp_path / "a.bin", sha256=SHA256)


def test_a_file_that_is_there_and_wrong_is_left_alone(server, tmp_path):
    _, url = _offer(server)
    (tmp_path / "a.bin").write_bytes(b"a letter")
    assert "delete it and try again" in _fail(url, tmp_path / "a.bin", sha256=SHA256)
    assert "has 8 bytes instead of 1,000,000" in _fail(url, tmp_path / "a.bin", size=len(CONTENT))
    assert (tmp_path / "a.bin").read_bytes() == b"a letter"
    (tmp_path / "folder").mkdir()
    assert "is not a file" in _fail(url, tmp_path / "folder")
    assert server.asked == []


def test_a_file_of_another_size_is_refused_before_it_comes(server, tmp_path):
    _, url = _offer(server, hangs_after=0)
    assert "1,000,000 bytes; expected 7" in _fail(url, tmp_path / "a.bin", size=7)
    assert "expected at most 999,999 bytes" in _fail(url, tmp_path / "a.bin", max_bytes=999_999)
    assert server.num_sent == 0


def test_a_file_without_room_is_refused_before_it_comes(server, tmp_path):
    _, url = _offer(server, length=10**18)
    message = _fail(url, tmp_path / "a.bin")
    assert "needs 1000000000.0 GB; free some space" in message
    assert _names(tmp_path) == ["a.bin.part.json"]


@pytest.mark.parametrize(
    ("status", "words"),
    [(404, "does not exist"), (403, "is not accessible"), (410, "no longer exists"), (418, "cannot be fetched")],
)
def test_a_status_that_stays_is_said_at_once(server, tmp_path, status, words):
    _, url = _offer(server, statuses=[status] * 9)
    message = _fail(url, tmp_path / "a.bin")
    assert words in message
    assert f"{status} {http.client.responses.get(status, '')}" in message
    assert len(server.asked) == 1


def test_a_status_that_passes_is_waited_for(server, tmp_path):
    file, url = _offer(server, statuses=[503])
    web.fetch(url, tmp_path / "a.bin", sha256=SHA256)
    file.statuses = [500, 500]
    assert "500 Internal Server Error" in _fail(url, tmp_path / "b.bin", attempts=2)


def test_a_server_that_says_nothing_is_given_up(server, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.bin"
        began = time.monotonic()
        assert "sent nothing for 0.2 s" in _fail(url, tmp_path / "a.bin", timeout=0.2)
        assert time.monotonic() - began < 5


def test_a_server_that_falls_silent_is_asked_again(server, tmp_path):
    _, url = _offer(server, hangs_after=300_000)
    message = _fail(url, tmp_path / "a.bin", timeout=0.2, attempts=2)
    assert "sent nothing for 0.2 s; the first 599,999 bytes are kept" in message
    assert [headers.get("Range") for headers in server.gets()] == [None, "bytes=299999-"]


def test_a_port_that_nobody_listens_to_refuses(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/a.bin"
        assert "refused the connection" in _fail(url, tmp_path / "a.bin")
        with pytest.raises(UserError, match="refused the connection"):
            web.remote_size(url)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://a/b", "a.bin", "", "http://", "http://a:99999999/b"])
def test_only_addresses_of_the_web_are_fetched(url, tmp_path):
    assert "is not a web address" in _fail(url, tmp_path / "a.bin")
    assert _names(tmp_path) == []


def test_a_redirect_is_followed_but_only_within_the_web(server, tmp_path):
    _offer(server)
    for path, target in (("/to", "/a.bin"), ("/out", "file:///etc/passwd"), ("/round", "/round")):
        headers = {"Location": target}
        server.files[path] = little_server.File(statuses=[302] * 50, headers=headers)
    assert web.fetch(f"{server.address}/to", tmp_path / "a.bin").read_bytes() == CONTENT
    for path in ("/out", "/round"):
        assert "no usable response" in _fail(server.address + path, tmp_path / "b.bin")


def test_passwords_and_keys_are_not_shown(server, tmp_path):
    address = server.address.replace("http://", "http://me:secret@")
    message = _fail(f"{address}/gone.bin?key=secret", tmp_path / "a.bin")
    assert f"`{server.address}/gone.bin` does not exist" in message
    assert "secret" not in message


def test_compression_on_the_way_is_refused_and_a_compressed_file_is_not(server, tmp_path):
    _, url = _offer(server, headers={"Content-Encoding": "gzip"})
    assert "is sent with the encoding gzip" in _fail(url, tmp_path / "a.bin")
    assert web.fetch(url, tmp_path / "a.tar.gz").read_bytes() == CONTENT
    assert server.gets()[0]["Accept-Encoding"] == "identity"


def test_of_several_that_want_a_file_one_fetches_it(server, tmp_path):
    _, url = _offer(server)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(web.fetch, url, tmp_path / "a.bin", sha256=SHA256) for _ in range(4)]:
            done.result()
    assert len(server.asked) == 1
    assert _names(tmp_path) == ["a.bin"]


def test_a_place_that_cannot_be_written_is_said(server, tmp_path):
    _, url = _offer(server)
    (tmp_path / "file").touch()
    assert "cannot be written" in _fail(url, tmp_path / "file" / "a.bin")


def test_the_size_of_a_file_is_known_beforehand_if_the_server_tells(server):
    _, url = _offer(server)
    assert web.remote_size(url) == len(CONTENT)
    _, url = _offer(server, length="chunked")
    assert web.remote_size(url) is None
    _, url = _offer(server, statuses=[405])
    assert web.remote_size(url) is None
    with pytest.raises(UserError, match="does not exist"):
        web.remote_size(f"{server.address}/gone")
    assert server.num_sent == 0
