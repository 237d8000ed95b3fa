"""Builds the sdist and the wheel, checks both, and tries the wheel where nothing of this repository is in reach.

`make release` calls it, and so does the release workflow. The wheel is built from the sdist, so a file that the sdist
lacks shows here. The trial installs the wheel with the versions of constraints.txt into a new environment and runs the
demo in an empty folder; `--quick` replaces the demo, which takes minutes, with a training run of 20 steps.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from typing import NoReturn

ROOT = pathlib.Path(__file__).resolve().parents[1]
_SOURCE = ROOT / "src"
# A gap here is a broken release whatever the tree says.
_NEEDED = ("efficientdet/py.typed", "efficientdet/serving/page/page.html", "efficientdet/serving/page/page.js")
_QUICK = (
    "doctor",
    "describe d0",
    "train demo --data.train synthetic --data.validation none --training.batch-size 8 --training.epochs 0.15625",
)


def main() -> None:
    """Builds, checks and tries a release; the first step that fails ends the program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "dist", help="folder for the sdist and the wheel")
    parser.add_argument("--python", default=sys.executable, help="the Python that the wheel is tried with")
    parser.add_argument("--quick", action="store_true", help="train for 20 steps instead of running the demo")
    parser.add_argument("--no-trial", action="store_true", help="build and check only")
    options = parser.parse_args()
    output = options.output.resolve()

    _step("build", lambda: build(output))
    wheel, sdist = _only(output, "*.whl"), _only(output, "*.tar.gz")
    _step("twine check", lambda: check_metadata(wheel, sdist))
    _step("contents", lambda: check_contents(wheel, sdist))
    if not options.no_trial:
        with tempfile.TemporaryDirectory(prefix="release-") as folder:
            try_wheel(wheel, pathlib.Path(folder), options.python, options.quick)


def build(output: pathlib.Path) -> str:
    """Builds the sdist, and the wheel from it, into an empty folder."""
    if output.exists():
        for path in [*output.glob("*.whl"), *output.glob("*.tar.gz")]:
            path.unlink()
    # hatchling is installed and pinned already; an environment of its own would take the newest.
    _run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(output), str(ROOT)])
    return ", ".join(f"{path.name} {path.stat().st_size / 1024:,.0f} KiB" for path in sorted(output.iterdir()))


def check_metadata(*files: pathlib.Path) -> str:
    """Checks that the package index will accept the metadata and render the README."""
    _run([sys.executable, "-m", "twine", "check", "--strict", *map(str, files)])
    return "passed"


def check_contents(wheel: pathlib.Path, sdist: pathlib.Path) -> str:
    """Compares the wheel with src/, file by file, and looks for what the sdist must have.

    Raises:
        SystemExit: a file is missing, or one is there that does not belong.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    if problem := problem_of_wheel(names, source_files()):
        _fail("contents", problem)
    if missing := {"pyproject.toml", "README.md", "LICENSE", "src/efficientdet/py.typed"} - in_sdist:
        _fail("contents", f"the sdist lacks {_list(missing)}.")
    return f"{len(names)} files in the wheel, {len(in_sdist)} in the sdist"


def source_files() -> set[str]:
    """Lists the files of the package as they are called in a wheel."""
    files = (path for path in _SOURCE.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path.relative_to(_SOURCE).as_posix() for path in files}


def problem_of_wheel(names: set[str], source: set[str]) -> str | None:
    """Says what is wrong with the files of a wheel; None if nothing is.

    Args:
        names: of the files in the wheel.
        source: of the files below src/.
    """
    package = {name for name in names if ".dist-info/" not in name}
    if missing := (source | set(_NEEDED)) - package:
        return f"the wheel lacks {_list(missing)}."
    if extra := package - source:
        return f"the wheel has {_list(extra)}, which src/ does not."
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names):
        return "the wheel lacks the license."
    return None


def _list(names: set[str]) -> str:
    return ", ".join(sorted(names))


def try_wheel(wheel: pathlib.Path, folder: pathlib.Path, python: str, quick: bool) -> None:
    """Installs the wheel into a new environment and uses it from an empty folder."""
    # Nothing of the caller's Python; pip's own settings (index, cache) stay.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    venv, work = folder / "venv", folder / "work"
    work.mkdir()
    program = str(venv / "bin" / "python")
    _step("environment", lambda: _run([python, "-m", "venv", str(venv)], environment))
    install = [program, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet"]
    words = [*install, "-c", str(ROOT / "constraints.txt"), f"{wheel}[tensorflow]"]
    _step("install", lambda: f"{_run(words, environment)}\nwith the versions of constraints.txt")
    environment["XDG_CACHE_HOME"] = str(folder / "cache")  # the package's; pip keeps its own above

    def use(arguments: str) -> str:
        _run([str(venv / "bin" / "efficientdet"), *arguments.split()], environment, work)
        return _version(program, environment, work)

    for arguments in _QUICK if quick else ("demo --output demo",):
        _step(f"efficientdet {' '.join(arguments.split()[:2])}", lambda arguments=arguments: use(arguments))
    if not quick:
        found = json.loads((work / "demo" / "demo.json").read_text(encoding="utf-8"))
        print(f"release: the demo's AP50 is {found['evaluation']['metrics']['AP50']:.2f}.", flush=True)


def _version(program: str, environment: dict[str, str], work: pathlib.Path) -> str:
    """Reads which Python and which package answered."""
    code = "import platform, efficientdet; print(platform.python_version(), efficientdet.__file__)"
    version, file = _run([program, "-c", code], environment, work).split(maxsplit=1)
    if not pathlib.Path(file.strip()).is_relative_to(pathlib.Path(program).parents[1]):
        _fail("trial", f"`import efficientdet` found {file.strip()}, which is not the wheel.")
    return f"Python {version}"


def _only(folder: pathlib.Path, pattern: str) -> pathlib.Path:
    """Finds the one file of a pattern."""
    found = list(folder.glob(pattern))
    if len(found) != 1:
        _fail("build", f"expected one {pattern} in {folder}, got {len(found)}.")
    return found[0]


def _step(name: str, work: Callable[[], str]) -> None:
    """Does one step and prints a line with its seconds."""
    began = time.monotonic()
    remark = work().strip().splitlines()
    seconds = time.monotonic() - began
    print(f"release: {name:<24} {seconds:6.1f} s  {remark[-1] if remark else ''}".rstrip(), flush=True)


def _run(words: list[str], environment: dict[str, str] | None = None, folder: pathlib.Path = ROOT) -> str:
    """Runs a command and returns what it prints; one that fails ends the program with its output."""
    done = subprocess.run(words, env=environment, cwd=folder, text=True, stdout=-1, stderr=subprocess.STDOUT)
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        _fail(" ".join(words[:4]), f"ended with status {done.returncode}.")
    return done.stdout


def _fail(step: str, text: str) -> NoReturn:
    sys.exit(f"release: {step}: {text}")


if __name__ == "__main__":
    main()
