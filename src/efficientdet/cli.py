"""The command line: each verb is a function of the Python API with the same name and arguments.

`efficientdet --help` must answer at once, so the verbs' modules are imported when a verb runs, not before.
"""

import importlib
import inspect
import itertools
import json
import os
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

import efficientdet
from efficientdet.errors import UsageError, UserError, one_line

VERBS = {
    "convert": (
        "efficientdet.data.conversion",
        "convert",
        "annotations in a dozen formats and their images to records",
    ),
    "download": ("efficientdet.data.coco_download", "download", "COCO 2017 by name, from its archives to records"),
    "preview": (
        "efficientdet.training.trials.previews",
        "preview",
        "a sheet of training images, augmented, with boxes",
    ),
    "train": ("efficientdet.training.run", "train", "train a preset on a dataset, or resume"),
    "evaluate": (
        "efficientdet.evaluation.measuring",
        "evaluate",
        "COCO AP of a run, a weights file, or detections in JSON",
    ),
    "predict": (
        "efficientdet.inference.prediction",
        "predict",
        "detect in images, videos, cameras: with boxes, and as JSON",
    ),
    "export": ("efficientdet.exporters.exports", "export", "SavedModel, ONNX, LiteRT or OpenVINO, compared with Keras"),
    "serve": ("efficientdet.serving.service", "serve", "a model over HTTP, with a page for people"),
    "import-weights": (
        "efficientdet.checkpoints.importing",
        "import_weights",
        "a published checkpoint to a weights file",
    ),
    "benchmark": ("", "", "input, train or inference: how fast it is here, in turns with what it is compared to"),
    "describe": ("efficientdet.model.complexity", "describe", "parameters, multiply-adds and anchors of a preset"),
    "doctor": ("efficientdet.diagnosis", "doctor", "devices, versions, precision, processes: what works here"),
    "demo": ("efficientdet.demo", "run_demo", "the whole path on generated images, in minutes"),
}

BENCHMARKS = {
    "input": ("efficientdet.benchmarks.input_pipeline", "benchmark_input", "records to batches, and what limits it"),
    "train": ("efficientdet.benchmarks.training", "benchmark_train", "updates, alone or fed by records"),
    "inference": ("efficientdet.benchmarks.inference", "benchmark_inference", "images to detections, and each part"),
    "exports": ("efficientdet.benchmarks.formats", "benchmark_exports", "each format and precision: size, AP, speed"),
}

_HELP = {"-h", "--help"}

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
    if arguments is None and _HELP & set(words):
        from efficientdet.command_line import deferral

        deferral.start()
    if not words or words[0] in (*_HELP, "help"):
        print(_help())
        return 0
    if words[0] == "--version":
        print(efficientdet.__version__)
        return 0
    verb, *rest = words
    if verb not in VERBS:
        print(f"efficientdet: unknown command `{verb}`; choose from {', '.join(VERBS)}.", file=sys.stderr)
        return 2
    try:
        try:
            return _run(verb, rest)
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
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {text}" for verb, (_, _, text) in VERBS.items())
    return (
        f"efficientdet {efficientdet.__version__}: EfficientDet object detection for Keras 3\n\n"
        "usage: efficientdet VERB ... [--json] [--backend tensorflow|jax]\n\n"
        f"{verbs}\n\n"
        "`efficientdet VERB --help` explains a verb. --json prints its result as JSON; --backend chooses Keras's\n"
        "backend (else KERAS_BACKEND, else keras.json, else TensorFlow).\n\n"
        f"{_EXAMPLES}"
    )


def _benchmark_help() -> str:
    """Writes what `efficientdet benchmark` takes."""
    width = max(map(len, BENCHMARKS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, (_, _, text) in BENCHMARKS.items())
    return (
        f"usage: efficientdet benchmark {{{','.join(BENCHMARKS)}}} ...\n\n{rows}\n\n"
        "Candidates are measured in turns; --output FILE writes hardware, versions, commit and command too.\n"
        "Each explains itself with --help."
    )


def _run(verb: str, words: list[str]) -> int:
    """Runs a verb and shows its result."""
    words, as_json = _take_flag(words, "--json")
    words, wanted = _take_option(words, "--backend")
    if not _HELP & set(words):
        from efficientdet import backend

        # An export is run without Keras. Records are TensorFlow's, whichever backend trains on them.
        choose = backend.prefer if verb == "predict" else backend.choose
        choose("tensorflow" if verb in ("convert", "download") else wanted)
    program = f"efficientdet {verb}"
    module, name, _ = VERBS[verb]
    if verb == "benchmark":
        which, *words = words or ["--help"]
        if which in _HELP:
            print(_benchmark_help())
            return 0
        if which not in BENCHMARKS:
            print(f"efficientdet: `benchmark` takes {', '.join(BENCHMARKS)}, not `{which}`.", file=sys.stderr)
            return 2
        (module, name, _), program = BENCHMARKS[which], f"{program} {which}"
    if verb == "convert":
        words = _with_format(words)
    if verb == "train":
        _check_options(verb, (), words)
        result = _train(words)
    else:
        function = getattr(importlib.import_module(module), name)
        _check_options(verb, inspect.signature(function).parameters, words)
        result = _preview(function, words) if verb == "preview" else _call(program, function, words)
    if as_json and not result.is_shown:
        print(json.dumps(result.to_dict(), indent=2))
    elif not result.is_shown:
        from rich.console import Console

        result.show(Console(highlight=False))
    if failure := result.failure():
        raise UserError(failure)
    return int(result.status())


def _with_format(words: list[str]) -> list[str]:
    """Writes `auto` in front of `FOLDER --output DIR`, where the words name no format."""
    if _HELP & set(words):
        return words
    from efficientdet.data import registry

    flags = ("--dry-run", "--overwrite", "--skip-", "--drop-", "--no-")
    for place, word in enumerate(words[:-1]):
        before = words[place - 1] if place else ""
        is_value = before.startswith("--") and "=" not in before and not before.replace("_", "-").startswith(flags)
        if word in ("auto", *registry.NAMES) and not is_value and not words[place + 1].startswith("-"):
            return words
    # A format without a folder and a misspelt one are for the parser to explain; a folder may be called like a format.
    leading = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    is_format = len(leading) > 1 or (leading[:1] and leading[0] in registry.NAMES)
    return words if is_format and not os.path.isdir(leading[0]) else ["auto", *words]  # noqa: PTH112


def _check_options(verb: str, parameters: Collection[str], words: list[str]) -> None:
    """Raises a UsageError for an option whose right name is known; the parser refuses the others."""
    from efficientdet.command_line import options

    if (text := options.explain(verb, parameters, words)) is not None:
        raise UsageError(text)


def _call(program: str, function: Callable[..., Any], words: list[str]) -> Any:
    """Calls a function with the arguments that the words give; wrong ones exit with status 2."""
    import tyro

    return tyro.cli(function, args=words, prog=program)


def _train(words: list[str]) -> Any:
    """Trains once, or once a seed of `--seeds`."""
    words, text = _take_option(words, "--seeds")
    words, export_format = _take_option(words, "--export")
    if export_format is not None:
        _check_export(export_format, text)
    config = _training_config(words)
    if text is None:
        from efficientdet.training.run import train

        summary = train(config)
        if export_format is not None:
            _export_run(summary.run_dir, export_format)
        return summary
    from efficientdet.training.trials import seeds

    return seeds.train_seeds(config, seeds.parse(text))


def _check_export(name: str, seeds: str | None) -> None:
    """Raises a UserError for an `--export` of `train` that would fail after hours of training."""
    from efficientdet import backend
    from efficientdet.exporters import exports

    if backend.running() != "tensorflow":
        raise UserError("`--export` converts on TensorFlow; train without it, then `efficientdet export` the run.")
    if name not in exports.PRECISIONS:
        raise UserError(f"`--export` is {name}; there are {', '.join(exports.PRECISIONS)}.")
    if seeds is not None:
        raise UserError("`--export` and `--seeds` do not go together; export the best run afterwards.")
    exports.require(name)


def _export_run(run_dir: str, name: str) -> None:
    """Ends a run with an export of its best weights, in its folder; of several processes the first does."""
    import pathlib

    from efficientdet import progress
    from efficientdet.exporters import exports
    from efficientdet.training.distributed import processes

    if processes.is_first():
        run = pathlib.Path(run_dir)
        made = exports.export(run, format=name, output=run / "exports" / name)  # type: ignore[arg-type]
        progress.console.print(made.text(), soft_wrap=True, markup=False)


def _training_config(words: list[str]) -> Any:
    """Reads `train PRESET [--config FILE_OR_RUN] [--section.knob value ...]`."""
    import tyro

    from efficientdet import presets
    from efficientdet.config import ExperimentConfig

    start, rest = _take_start("train", words)
    if start is None:
        if not _HELP & set(rest):
            raise UserError(
                f"`train` needs a preset: one of {', '.join(presets.PRESETS)}; or `--config FILE`, of a run."
            )
        start = presets.find_preset("d0")
    description = (
        "Trains a preset; every knob below can be changed. Running the same command again resumes. "
        f"Presets: {', '.join(presets.PRESETS)}. `--config RUN` starts from the config.json of a run instead. "
        "`--seeds 0..4` (or 0,1,7) trains once from each seed, in RUN_DIR/seed-N: mean and standard deviation. "
        "`--export saved_model` (onnx, litert, openvino) ends the run with an export in RUN_DIR/exports."
    )
    return tyro.cli(
        ExperimentConfig, args=rest, default=start, prog="efficientdet train PRESET", description=description
    )


def _preview(function: Callable[..., Any], words: list[str]) -> Any:
    """Calls `preview DATA [PRESET | --config RUN] [--output FILE] [--section.knob value ...]`."""
    import functools

    import tyro

    from efficientdet import presets

    data, rest = (words[:1], words[1:]) if words and not words[0].startswith("-") else ([], words)
    start, rest = _take_start("preview", rest)
    function = functools.partial(function, config=start or presets.find_preset("d0"))
    return tyro.cli(function, args=[*data, *rest], prog="efficientdet preview")


def _take_start(verb: str, words: list[str]) -> tuple[Any, list[str]]:
    """Takes `PRESET` from the front of the words, or `--config FILE` out of them: the config to start from, or none.

    FILE may also be the folder of a run, whose config.json it then is.
    """
    words, file = _take_option(words, "--config")
    preset, rest = (words[0], words[1:]) if words and not words[0].startswith("-") else (None, words)
    if file is not None and preset is not None:
        raise UserError(f"`{verb}` has the preset `{preset}` and `--config {file}`; give one of them.")
    if file is not None:
        import pathlib

        from efficientdet import config as configs

        path = pathlib.Path(file).expanduser()
        return configs.load(path / "config.json" if path.is_dir() else path), rest
    if preset is not None:
        from efficientdet import presets

        return presets.find_preset(preset), rest
    return None, rest


def _take_flag(words: list[str], flag: str) -> tuple[list[str], bool]:
    return [word for word in words if word != flag], flag in words


def _take_option(words: list[str], option: str) -> tuple[list[str], str | None]:
    """Takes `option value` or `option=value` out of the words."""
    for place, word in enumerate(words):
        if word.startswith(f"{option}="):
            return words[:place] + words[place + 1 :], word.removeprefix(f"{option}=")
        if word == option:
            if place + 1 == len(words):
                raise UserError(f"`{option}` has no value.")
            return words[:place] + words[place + 2 :], words[place + 1]
    return words, None
