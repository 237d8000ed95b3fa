"""The command line: one table of commands, each a function of the Python API with the same name and arguments.

`efficientdet --help` must be fast, so a command's module is imported only when the command runs.
"""

import dataclasses
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import efficientdet
from efficientdet.command_line import grammars
from efficientdet.errors import UsageError, UserError, one_line


@dataclasses.dataclass(frozen=True)
class Verb:
    """A command: a function whose parameters are its options."""

    module: str
    function: str
    summary: str
    grammar: Callable[[list[str]], grammars.Reading] = grammars.plain
    """Reads what its command line takes beyond these options."""
    backend: Literal["chosen", "later", "tensorflow"] = "chosen"
    """Keras backend. chosen: the requested one; later: the same, but Keras is imported only if needed;
    tensorflow: always TensorFlow."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Subcommands of one word, such as `benchmark`."""

    summary: str
    verbs: Mapping[str, Verb]
    note: str


VERBS: Mapping[str, Verb | Group] = {
    # Records are written with TensorFlow, whichever backend trains on them.
    "convert": Verb(
        "efficientdet.data.conversion",
        "convert",
        "convert images and annotations (a dozen formats) to records",
        grammar=grammars.convert,
        backend="tensorflow",
    ),
    "download": Verb(
        "efficientdet.data.coco_download",
        "download",
        "download COCO 2017 and convert it to records",
        backend="tensorflow",
    ),
    "preview": Verb(
        "efficientdet.training.trials.previews",
        "preview",
        "draw a sheet of augmented training images with boxes",
        grammar=grammars.preview,
    ),
    "train": Verb(
        "efficientdet.training.experiment",
        "train",
        "train a preset on a dataset, or resume a run",
        grammar=grammars.train,
    ),
    "evaluate": Verb(
        "efficientdet.evaluation.measuring",
        "evaluate",
        "compute COCO AP of a run, a weights file or a JSON of detections",
    ),
    # Exports run without Keras.
    "predict": Verb(
        "efficientdet.inference.prediction",
        "predict",
        "detect objects in images, videos and cameras; draw boxes and write JSON",
        backend="later",
    ),
    "export": Verb(
        "efficientdet.exporters.exports",
        "export",
        "export to SavedModel, ONNX, LiteRT or OpenVINO, checked against Keras",
    ),
    "serve": Verb("efficientdet.serving.service", "serve", "serve a model over HTTP, with a web page"),
    "import-weights": Verb(
        "efficientdet.checkpoints.importing", "import_weights", "convert a published checkpoint to a weights file"
    ),
    "benchmark": Group(
        "measure the speed of input, training, inference or exports on this machine",
        {
            "input": Verb(
                "efficientdet.benchmarks.input_pipeline",
                "benchmark_input",
                "from records to batches, and what limits it",
            ),
            "train": Verb(
                "efficientdet.benchmarks.training", "benchmark_train", "training steps, alone or fed by records"
            ),
            "inference": Verb(
                "efficientdet.benchmarks.inference", "benchmark_inference", "from images to detections, stage by stage"
            ),
            "exports": Verb(
                "efficientdet.benchmarks.formats",
                "benchmark_exports",
                "size, AP and speed of each format and precision",
            ),
        },
        "Candidates take turns. --output FILE also records the hardware, versions, commit and command.\n"
        "Run a subcommand with --help to see its options.",
    ),
    "describe": Verb(
        "efficientdet.model.complexity", "describe", "show parameters, multiply-adds and anchors of a preset"
    ),
    "doctor": Verb(
        "efficientdet.diagnosis", "doctor", "check devices, versions, precision and processes on this machine"
    ),
    "demo": Verb("efficientdet.demo", "run_demo", "try the whole workflow on generated images, in minutes"),
}

_EXAMPLES = """\
a first run, from photographs to detections:
  efficientdet convert photographs/ --output records/
  efficientdet train lite0 --data.train records/ --backbone imagenet --training.batch-size 8 --training.epochs 50
  efficientdet evaluate runs/lite0 --data records/
  efficientdet predict runs/lite0 photograph.jpg
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: words after `efficientdet`; None means those of the process.

    Returns:
        0 for success, 1 for a failure that the message explains, 2 for wrong usage.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None and grammars.HELP & set(words):
        from efficientdet.command_line import deferral

        deferral.start()
    try:
        try:
            return _run(words)
        finally:
            sys.stdout.flush()
    except UserError as error:
        print(f"efficientdet: {one_line(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as error:
        if not error.args:  # otherwise the run has already reported that it was saved
            print("efficientdet: interrupted.", file=sys.stderr)
        return 130


def _help() -> str:
    """Returns the text of `efficientdet --help`."""
    return (
        f"efficientdet {efficientdet.__version__}: EfficientDet object detection for Keras 3\n\n"
        "usage: efficientdet COMMAND ... [--json] [--backend tensorflow|jax]\n\n"
        f"{_rows(VERBS)}\n\n"
        "Run `efficientdet COMMAND --help` for a command's options. --json prints the result as JSON. --backend sets\n"
        "the Keras backend (default: KERAS_BACKEND, then keras.json, then TensorFlow).\n\n"
        f"{_EXAMPLES}"
    )


def _rows(verbs: Mapping[str, Verb | Group]) -> str:
    """Formats one line per command."""
    width = max(map(len, verbs))
    return "\n".join(f"  {name:<{width}}  {verb.summary}" for name, verb in verbs.items())


def _run(words: list[str]) -> int:
    """Runs a command and shows its result."""
    words, as_json = grammars.take_flag(words, "--json")
    words, wanted = grammars.take_option(words, "--backend")
    if not words or words[0] in (*grammars.HELP, "help"):
        print(_help())
        return 0
    if words[0] == "--version":
        print(efficientdet.__version__)
        return 0
    program, verb, words = _find(words)
    if isinstance(verb, Group):
        print(f"usage: {program} {{{','.join(verb.verbs)}}} ...\n\n{_rows(verb.verbs)}\n\n{verb.note}")
        return 0
    if not grammars.HELP & set(words):
        _choose_backend(verb, wanted)
    result = _call(verb, program, words)
    if as_json and not result.is_shown:
        print(json.dumps(result.to_dict(), indent=2))
    elif not result.is_shown:
        from rich.console import Console

        result.show(Console(highlight=False))
    if failure := result.failure():
        raise UserError(failure)
    return int(result.status())


def _find(words: list[str]) -> tuple[str, Verb | Group, list[str]]:
    """Finds the command that the first words name.

    Returns:
        The program name including these words; the command, or a group whose help to show; and the remaining words.

    Raises:
        UsageError: the command is unknown.
    """
    path, verbs, rest = ["efficientdet"], VERBS, words
    while True:
        name, *rest = rest
        path.append(name)
        if name not in verbs:
            raise UsageError(f"unknown command `{' '.join(path[1:])}`; choose from {', '.join(verbs)}.")
        verb = verbs[name]
        if isinstance(verb, Verb) or not rest or rest[0] in grammars.HELP:
            return " ".join(path), verb, rest
        verbs = verb.verbs


def _choose_backend(verb: Verb, wanted: str | None) -> None:
    """Sets the Keras backend before any module imports Keras."""
    from efficientdet import backend

    choose = backend.prefer if verb.backend == "later" else backend.choose
    choose("tensorflow" if verb.backend == "tensorflow" else wanted)


def _call(verb: Verb, program: str, words: list[str]) -> Any:
    """Parses the words and calls the command's function; wrong usage exits with status 2."""
    from efficientdet.command_line import options, parsing

    function = getattr(importlib.import_module(verb.module), verb.function)
    # Unknown options that we can name the right spelling of; the parser rejects the others.
    if (text := options.explain(program.split()[1], inspect.signature(function).parameters, words)) is not None:
        raise UsageError(text)
    reading = verb.grammar(words)
    everywhere = (grammars.JSON,) if verb.backend == "tensorflow" else (grammars.JSON, grammars.BACKEND)
    reading = dataclasses.replace(reading, listed=(*reading.listed, *everywhere))
    positional, named = parsing.parse(function, reading, program)
    return function(*positional, **named)
