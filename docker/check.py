"""Runs docker/Dockerfile without Docker: its files, its variables, its `pip install` lines, in a fresh environment.

`make docker-check` calls it. A folder stands for the image's root and a new virtual environment for its Python; lines
that need root (useradd) are named and left out. Then the image's command must answer, and every package must have the
version of constraints.txt. The extra is `jax` instead of `jax-gpu`, whose CUDA libraries are gigabytes.
"""

import argparse
import fnmatch
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import venv

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
# Of Python itself, not of the package.
_NOT_OURS = {"pip", "setuptools", "wheel", "efficientdet-keras"}


def main() -> None:
    """Builds and tries what the Dockerfile describes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--extra", default="jax", help="value of the build argument EXTRA")
    extra = parser.parse_args().extra
    with tempfile.TemporaryDirectory(prefix="docker-check-") as folder:
        image = Image(pathlib.Path(folder), {"EXTRA": extra})
        for instruction, words in read_dockerfile(DOCKERFILE.read_text(encoding="utf-8")):
            image.apply(instruction, words)
        check_pins(image.capture("python -m pip freeze"))
        answer = image.capture(shlex.join(image.entrypoint + image.command))
        if "usage: efficientdet" not in answer:
            sys.exit(f"docker-check: the image's command answered {answer!r}.")
        version = image.capture("efficientdet --version").strip()
        d0 = json.loads(image.capture("efficientdet describe d0 --json"))
        if d0["parameters"] != 3_880_067:
            sys.exit(f"docker-check: d0 has {d0['parameters']} parameters in the image.")
    print(f"docker-check: efficientdet {version} with the extra `{extra}` installs and builds d0 on {image.backend}.")


def read_dockerfile(text: str) -> list[tuple[str, str]]:
    """Splits a Dockerfile into instructions and what follows them; comments go, continued lines are joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines())]


def context_files(patterns: list[str]) -> list[pathlib.PurePosixPath]:
    """Lists the files of the project that a .dockerignore lets into an image, in the form that ours has.

    Args:
        patterns: lines: `*`, `!NAME` for what comes back, `**/NAME` for what goes again.
    """
    if patterns[0] != "*":
        raise ValueError("expected a .dockerignore that begins with `*`")
    kept = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    dropped = [pattern.removeprefix("**/") for pattern in patterns[1:] if not pattern.startswith("!")]
    files = []
    for name in kept:
        path = ROOT / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            inside = pathlib.PurePosixPath(file.relative_to(ROOT).as_posix())
            if file.is_file() and not any(fnmatch.fnmatch(part, drop) for part in inside.parts for drop in dropped):
                files.append(inside)
    return files


def read_patterns(text: str) -> list[str]:
    """Reads the lines of a .dockerignore or a constraints file, without comments."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def check_pins(frozen: str) -> None:
    """Ends the program if a package is not, or not as, in constraints.txt."""
    pins = dict(line.split("==") for line in read_patterns((ROOT / "constraints.txt").read_text(encoding="utf-8")))
    wanted = {_plain(name): version for name, version in pins.items()}
    installed = dict(line.split("==") for line in frozen.splitlines() if "==" in line)
    wrong = {name: version for name, version in installed.items() if _plain(name) not in _NOT_OURS}
    wrong = {name: version for name, version in wrong.items() if wanted.get(_plain(name)) != version}
    if not installed or wrong:
        sys.exit(f"docker-check: not the versions of constraints.txt: {wrong or 'nothing is installed'}.")


def _plain(name: str) -> str:
    """Writes a package's name as the index does."""
    return re.sub(r"[-_.]+", "-", name).lower()


class Image:
    """A folder in which a Dockerfile's instructions are carried out."""

    def __init__(self, folder: pathlib.Path, build_arguments: dict[str, str]):
        """Makes the environment that stands for the image's Python."""
        self._root, self._build_arguments = folder / "root", build_arguments
        self._python = folder / "python"
        venv.create(self._python, with_pip=True)
        self._workdir = pathlib.PurePosixPath("/")
        self._context = context_files(read_patterns((ROOT / ".dockerignore").read_text(encoding="utf-8")))
        # Nothing of the caller's Python; pip's own settings (index, cache) stay.
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        self._environment["PATH"] = f"{self._python / 'bin'}{os.pathsep}{os.environ['PATH']}"
        self.entrypoint: list[str] = []
        self.command: list[str] = []

    @property
    def backend(self) -> str:
        """Keras's backend in the image."""
        return self._environment["KERAS_BACKEND"]

    def apply(self, instruction: str, words: str) -> None:
        """Carries out one instruction; one that is not known ends the program."""
        if instruction == "ARG":
            name, _, default = words.partition("=")
            self._environment[name] = self._build_arguments.get(name, default)
        elif instruction == "ENV":
            settings = dict(word.split("=", 1) for word in shlex.split(words))
            if "HOME" in settings:
                settings["HOME"] = str(self._folder(settings["HOME"]))
            self._environment |= settings
        elif instruction == "WORKDIR":
            self._workdir /= words
            self._folder(str(self._workdir)).mkdir(parents=True, exist_ok=True)
        elif instruction == "COPY":
            *sources, target = words.split()
            self._copy(sources, target)
        elif instruction == "RUN":
            self._run(re.sub(r"^(--\S+ )+", "", words))
        elif instruction in ("ENTRYPOINT", "CMD"):
            setattr(self, {"ENTRYPOINT": "entrypoint", "CMD": "command"}[instruction], json.loads(words))
        elif instruction not in ("FROM", "USER"):
            sys.exit(f"docker-check: no idea what `{instruction}` does.")

    def capture(self, command: str) -> str:
        """Runs a command as in the finished image and returns what it prints."""
        folder = self._folder(str(self._workdir))
        done = subprocess.run(["sh", "-c", command], cwd=folder, env=self._environment, text=True, stdout=-1)
        if done.returncode:
            sys.exit(f"docker-check: `{command}` ended with status {done.returncode}.")
        return done.stdout

    def _folder(self, inside: str) -> pathlib.Path:
        """Finds the folder that stands for one of the image's."""
        return self._root / inside.lstrip("/")

    def _copy(self, sources: list[str], target: str) -> None:
        """Copies files of the project, those that .dockerignore lets in."""
        for source in sources:
            found = [path for path in self._context if path == pathlib.PurePosixPath(source)]
            inside = [path for path in self._context if pathlib.PurePosixPath(source) in path.parents]
            if not found and not inside:
                sys.exit(f"docker-check: `COPY {source}`: .dockerignore lets nothing of it in.")
            for path in found + inside:
                name = path.relative_to(source) if inside else path.name
                to = self._folder(str(self._workdir / target)) / name
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / path, to)

    def _run(self, command: str) -> None:
        """Runs a line that installs; leaves out one that makes a user."""
        if command.startswith("useradd "):
            print(f"docker-check: needs root, left out: {command}", flush=True)
        elif command.startswith("python -m pip "):
            print(f"docker-check: {command}", flush=True)
            self.capture(f"{command} --quiet --no-compile")  # compiling takes a minute, and changes nothing here
        else:
            sys.exit(f"docker-check: no idea whether `RUN {command}` can run outside of Docker.")


if __name__ == "__main__":
    main()
