"""The command line: one table of verbs, each a function of the Python API with the same name and arguments.

`efficientdet --help` must answer at once, so a verb's module is imported when the verb runs, not before.
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
    """A command: a function, whose parameters are its options."""

    module: str
    function: str
    summary: str
    grammar: Callable[[list[str]], grammars.Reading] = grammars.plain
    """Reads what its command line takes beyond these options."""
    backend: Literal["chosen", "later", "tensorflow"] = "chosen"
    """Keras's. chosen: the one that was asked for; later: the same, but Keras is imported only where it is needed;
    tensorflow: this one, whichever was asked for."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Commands below one word."""

    summary: str
    verbs: Mapping[str, Verb]
    note: str


VERBS: Mapping[str, Verb | Group] = {
    # Records are TensorFlow's, whichever backend trains on them.
    "convert": Verb(
        "efficientdet.data.conversion",
        "convert",
        "annotations in a dozen formats and their images to records",
        grammar=grammars.convert,
        backend="tensorflow",
    ),
    "download": Verb(
        "efficientdet.data.coco_download",
        "download",
        "COCO 2017 by name, from its archives to records",
        backend="tensorflow",
    ),
    "preview": Verb(
        "efficientdet.training.trials.previews",
        "preview",
        "a sheet of training images, augmented, with boxes",
        grammar=grammars.preview,
    ),
    "train": Verb(
        "efficientdet.training.experiment",
        "train",
        "train a preset on a dataset, or resume",
        grammar=grammars.train,
    ),
    "evaluate": Verb(
        "efficientdet.evaluation.measuring", "evaluate", "COCO AP of a run, a weights file, or detections in JSON"
    ),
    # An export is run without Keras.
    "predict": Verb(
        "efficientdet.inference.prediction",
        "predict",
        "detect in images, videos, cameras: with boxes, and as JSON",
        backend="later",
    ),
    "export": Verb(
        "efficientdet.exporters.exports", "export", "SavedModel, ONNX, LiteRT or OpenVINO, compared with Keras"
    ),
    "serve": Verb("efficientdet.serving.service", "serve", "a model over HTTP, with a page for people"),
    "import-weights": Verb(
        "efficientdet.checkpoints.importing", "import_weights", "a published checkpoint to a weights file"
    ),
    "benchmark": Group(
        "input, train or inference: how fast it is here, in turns with what it is compared to",
        {
            "input": Verb(
                "efficientdet.benchmarks.input_pipeline",
                "benchmark_input",
                "records to batches, and what limits it",
            ),
            "train": Verb("efficientdet.benchmarks.training", "benchmark_train", "updates, alone or fed by records"),
            "inference": Verb(
                "efficientdet.benchmarks.inference", "benchmark_inference", "images to detections, and each part"
            ),
            "exports": Verb(
                "efficientdet.benchmarks.formats",
                "benchmark_exports",
                "each format and precision: size, AP, speed",
            ),
        },
        "Candidates are measured in turns; --output FILE writes hardware, versions, commit and command too.\n"
        "Each explains itself with --help.",
    ),
    "describe": Verb("efficientdet.model.complexity", "describe", "parameters, multiply-adds and anchors of a preset"),
    "doctor": Verb("efficientdet.diagnosis", "doctor", "devices, versions, precision, processes: what works here"),
    "demo": Verb("efficientdet.demo", "run_demo", "the whole path on generated images, in minutes"),
}

_EXAMPLES = """\
a first run, from photographs to images with boxes:
  efficientdet convert photographs/ --output records/
  efficientdet train lite0 --data.train records/ --backbone imagenet --training.batch-size 8 --training.epochs 50
  efficientdet evaluate runs/lite0 --data records/
  efficientdet predict runs/lite0 photograph.jpg
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: words after `efficientdet`; those of the process if None.

    Returns:
        0 success, 1 a failure that the message explains. Wrong usage exits with status 2.
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
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as error:
        if not error.args:  # a run that saved itself has said so
            print("efficientdet: interrupted.", file=sys.stderr)
        return 130


def _help() -> str:
    """Writes the first page."""
    return (
        f"efficientdet {efficientdet.__version__}: EfficientDet object detection for Keras 3\n\n"
        "usage: efficientdet VERB ... [--json] [--backend tensorflow|jax]\n\n"
        f"{_rows(VERBS)}\n\n"
        "`efficientdet VERB --help` explains a verb. --json prints its result as JSON; --backend chooses Keras's\n"
        "backend (else KERAS_BACKEND, else keras.json, else TensorFlow).\n\n"
        f"{_EXAMPLES}"
    )


def _rows(verbs: Mapping[str, Verb | Group]) -> str:
    """Writes a line for each verb."""
    width = max(map(len, verbs))
    return "\n".join(f"  {name:<{width}}  {verb.summary}" for name, verb in verbs.items())


def _run(words: list[str]) -> int:
    """Runs a verb and shows its result."""
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
    """Finds the verb that the first words name.

    Returns:
        The program with these words, the verb, or a group that is to be explained, and the other words.

    Raises:
        UsageError: there is no such verb.
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
    """Fixes Keras's backend, before the modules that import Keras."""
    from efficientdet import backend

    choose = backend.prefer if verb.backend == "later" else backend.choose
    choose("tensorflow" if verb.backend == "tensorflow" else wanted)


def _call(verb: Verb, program: str, words: list[str]) -> Any:
    """Calls a verb's function with the arguments that the words give; wrong ones exit with status 2."""
    from efficientdet.command_line import options, parsing

    function = getattr(importlib.import_module(verb.module), verb.function)
    # An option whose right name is known; the parser refuses the others.
    if (text := options.explain(program.split()[1], inspect.signature(function).parameters, words)) is not None:
        raise UsageError(text)
    reading = verb.grammar(words)
    everywhere = (grammars.JSON,) if verb.backend == "tensorflow" else (grammars.JSON, grammars.BACKEND)
    reading = dataclasses.replace(reading, listed=(*reading.listed, *everywhere))
    positional, named = parsing.parse(function, reading, program)
    return function(*positional, **named)
