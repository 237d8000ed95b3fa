"""Files: where one can be written is known beforehand, and finding it out leaves nothing behind."""

import concurrent.futures
import os
import subprocess
import sys

import pytest

from efficientdet.errors import UserError
from efficientdet.storage import files


@pytest.mark.parametrize("place", ["new", "old", "a/b/new", "folder/new"])
def test_a_place_to_write_to_is_found_and_left_as_it_was(place, tmp_path):
    (tmp_path / "old").write_text("mine")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    files.check_writable(tmp_path / place)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "old").read_text() == "mine"
    files.write_json(tmp_path / place, {})  # what it promises


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        pytest.param("file/new", "Not a directory", id="below a file"),
        pytest.param("file/a/b/new", "Not a directory", id="far below a file"),
        pytest.param("folder", "Is a directory", id="a folder"),
        pytest.param("dangling/new", "No such file or directory", id="below a link to nowhere"),
        pytest.param("x" * 300, "File name too long", id="too long"),
        pytest.param(f"{'x' * 300}/new", "File name too long", id="below a folder whose name is too long"),
        pytest.param("closed/new", "Permission denied", id="a folder that is not ours"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line(place, reason, tmp_path):
    if "closed" in place and os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "closed").mkdir(mode=0o500)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError) as error:
        files.check_writable(tmp_path / place)
    assert str(error.value) == f"`{tmp_path / place}` cannot be written: {reason}."
    with pytest.raises(UserError, match="cannot be written"):
        files.write_json(tmp_path / place, {})  # it was right
    assert sorted(tmp_path.iterdir()) == before


_HOLD = """
import pathlib, sys, time
from efficientdet.storage import files
with files.one_at_a_time(pathlib.Path(sys.argv[1])):
    print(flush=True)
    time.sleep(60)
"""


def test_what_one_works_on_others_wait_for_and_no_lock_is_left(tmp_path):
    path = tmp_path / "number"
    path.write_text("0")

    def count(_):
        with files.one_at_a_time(path):
            number = int(path.read_text())
            path.write_text("")
            path.write_text(str(number + 1))

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        list(threads.map(count, range(20)))
    assert path.read_text() == "20"
    assert list(tmp_path.iterdir()) == [path]


def test_a_process_that_is_killed_blocks_nobody(tmp_path):
    path = tmp_path / "file"
    with subprocess.Popen([sys.executable, "-c", _HOLD, str(path)], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        other.kill()
    with files.one_at_a_time(path):
        assert list(tmp_path.iterdir()) == [tmp_path / ".file.lock"]
    assert list(tmp_path.iterdir()) == []
