"""What a result file says beside its figures."""

import sys

import pytest

from efficientdet.benchmarks import report


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["/opt/bin/efficientdet", "benchmark", "input", "records/"], "efficientdet benchmark input records/"),
        (
            ["benchmarks/tiles.py", "/home/a/photos", "--output=/tmp/b/t.json"],
            "python benchmarks/tiles.py photos --output=t.json",
        ),
        (["benchmarks/x.py", "--rival", "/opt/v/bin/python y.py"], "python benchmarks/x.py --rival python y.py"),
        (["benchmarks/x.py", "../records", "a/b"], "python benchmarks/x.py ../records a/b"),
    ],
)
def test_the_command_names_no_folder_of_one_machine(monkeypatch, words, command):
    monkeypatch.setattr(sys, "argv", words)
    assert report.circumstances()["command"] == command
