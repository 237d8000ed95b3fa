"""Modules that wait behave as others once something of them is asked for; each case has a process of its own."""

import subprocess
import sys

import pytest

from efficientdet import cli


def _run(program):
    start = "import sys\nfrom efficientdet.command_line import deferral\ndeferral.start()\n"
    found = subprocess.run([sys.executable, "-c", start + program], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    return found.stdout.split()


def test_a_module_is_loaded_when_something_of_it_is_asked_for():
    program = """
import numpy as np
import numpy as again
print("numpy._core" in sys.modules)
print(again.zeros(2).sum(), np.linalg.norm(np.ones(4)), type(np).__name__, "numpy._core" in sys.modules)
"""
    assert _run(program) == ["False", "0.0", "2.0", "module", "True"]


@pytest.mark.parametrize(
    "statement",
    [
        "from efficientdet.media.images import SUFFIXES as found",
        "from efficientdet.media import images; found = images.SUFFIXES",
        "import efficientdet.media.images as images; found = images.SUFFIXES",
        "from PIL import Image; found = Image.new('L', (1, 1))",
        "from PIL.Image import new as found",
        "import requests; found = requests.Session",
        "import yaml; found = yaml.safe_load('a: 1')",
        "import numpy.random; found = numpy.random.default_rng(0).random()",
    ],
)
def test_every_way_to_import_works(statement):
    assert _run(f"{statement}\nprint(bool(found))") == ["True"]


def test_what_is_missing_is_an_import_error():
    program = """
try:
    import efficientdet.nothing
except ModuleNotFoundError as error:
    print(error.name)
"""
    assert _run(program) == ["efficientdet.nothing"]


def test_a_call_in_a_process_that_goes_on_defers_nothing(capsys):
    finders = list(sys.meta_path)
    with pytest.raises(SystemExit):
        cli.main(["describe", "--help"])
    assert "usage: efficientdet describe" in capsys.readouterr().out
    assert sys.meta_path == finders
