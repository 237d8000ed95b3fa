"""Speed of inference: the network alone, end to end, and each part, measured alternately with a rival."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table

from efficientdet import progress
from efficientdet.benchmarks import accelerator, drawn_weights, report, rivals, suppression, timing
from efficientdet.config import Depthwise, PostprocessConfig, Precision, RuntimeName
from efficientdet.data import preprocess, synthetic
from efficientdet.errors import UserError
from efficientdet.formats import manifest
from efficientdet.inference import detector
from efficientdet.kernels import host_postprocess
from efficientdet.media import images
from efficientdet.result import Result
from efficientdet.storage import files
from efficientdet.training.logs import memory

_THEIR_PRECISIONS = {"float32": "float32", "tf32": "tf32", "mixed_bfloat16": "bfloat16", "mixed_float16": "float16"}
_RATIOS = {"float32": "inference_cpu_fp32_vs_effdet", "mixed_bfloat16": "inference_cpu_bf16_vs_effdet"}
_RIVAL = "rival"
_MOST = 64  # images read from a folder
_GENERATED = 8  # images generated if there is no folder
_GENERATED_SIZE = (480, 640)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceBenchmark(Result):
    """Speed and latency of each way to run a model, and of a rival."""

    what: str
    rows: list[dict[str, Any]]
    """For each part: its name, what computes it, images/s over the rounds, ms over all single calls."""
    ratios: dict[str, dict[str, float]]
    """Name -> min, median, max of our rate over theirs in the same round."""
    resident_mb: dict[str, float]
    """Memory that each of our runtimes added to the process, MB; and `peak`, the peak of the process."""

    def table(self) -> Table:
        """Formats the rows for a terminal, with the ratios below."""
        lines = [f"{name}: {ratio['median']} ({ratio['min']} to {ratio['max']})" for name, ratio in self.ratios.items()]
        table = Table(title=self.what, title_justify="left", caption="\n".join(lines), caption_justify="left")
        for heading in ("part", "by", "precision"):
            table.add_column(heading)
        for heading in ("batch", "images/s", "p50 ms", "p90", "p95", "p99"):
            table.add_column(heading, justify="right")
        for row in self.rows:
            latency = [f"{row['latency_ms'][name]:.4g}" for name in ("p50", "p90", "p95", "p99")]
            rate = f"{row['images_per_second']['median']:.4g}"
            table.add_row(row["part"], row["by"], row["precision"], str(row["batch_size"]), rate, *latency)
        return table


@dataclasses.dataclass(eq=False)
class _Candidate:
    """Something that is timed alternately with others."""

    part: str
    by: str
    precision: str
    batch_size: int
    call: Callable[[int], Any]
    """Processes one batch; the argument counts the calls."""
    seconds: list[float] = dataclasses.field(default_factory=list)
    """Duration of every single call."""

    @property
    def name(self) -> str:
        return f"{self.part} {self.by} {self.precision} {self.batch_size}"

    def turn(self, turn_seconds: float) -> float:
        """Works for `turn_seconds` and returns images/s."""
        spent = timing.repeat(self.call, turn_seconds)
        self.seconds += spent
        return self.batch_size * len(spent) / sum(spent)

    def row(self, rates: Sequence[float]) -> dict[str, Any]:
        """Creates the row of the result: speed over the rounds, latency over all calls."""
        return {
            "part": self.part,
            "by": self.by,
            "precision": self.precision,
            "batch_size": self.batch_size,
            "images_per_second": timing.spread(rates),
            "latency_ms": timing.percentiles(self.seconds),
        }


class _Rival(_Candidate):
    """Another program, which times itself."""

    def __init__(self, rival: Any, precision: str, batch_size: int):
        """Takes a running program."""
        super().__init__("network", _RIVAL, precision, batch_size, lambda _: None)
        self._rival = rival
        self.facts: dict[str, Any] = {}

    def turn(self, turn_seconds: float) -> float:
        """Has the program measure itself once; returns images/s."""
        answer = self._rival.measure()
        self.seconds += answer.pop("seconds", [])
        rate: float = answer.pop("rate")
        self.facts = answer
        return rate

    def row(self, rates: Sequence[float]) -> dict[str, Any]:
        """Adds the program's own facts to the row."""
        return {**super().row(rates), **self.facts}


def benchmark_inference(
    model: str = "d0",
    /,
    *,
    images: Path | None = None,
    image_size: tuple[int, int] | None = None,
    batch_sizes: tuple[int, ...] = (1,),
    precisions: tuple[Precision, ...] = ("float32", "mixed_bfloat16"),
    runtimes: tuple[RuntimeName, ...] = ("keras", "openvino"),
    depthwise: tuple[Depthwise, ...] = ("auto",),
    trained: str = "",
    rounds: int = 5,
    turn_seconds: float = 1.0,
    rival: str = "",
    output: Path | None = None,
) -> InferenceBenchmark:
    """Measures the speed of inference on this machine.

    Measures the network alone and end to end (decode, letterbox, network, suppression) with each runtime, precision and
    batch size, then the parts alone, and the suppression against its NumPy implementation. The candidates take turns,
    so that a shared machine slows them equally; ratios are taken within a round. Latency percentiles are over all
    individual calls.

    To use effdet in PyTorch as the rival, run `make parity` first, which creates its environment:
      efficientdet benchmark inference --rival ".venv-parity/bin/python benchmarks/effdet_rival.py inference"

    Args:
        model: weights file, run, published name, an export with raw outputs (in its own runtime and precision), or a
            preset (with random weights, which are as fast as trained ones).
        images: folder of photographs; default: generated images.
        image_size: height and width of the network input, px; default: the model's own.
        batch_sizes: images per call.
        precisions: data types inside the network; those that the CPU has no instructions for are skipped with a
            message.
        runtimes: keras, openvino.
        depthwise: how Keras computes depthwise convolutions; auto: as `predict` does; pallas needs JAX and a GPU.
        trained: weights whose predictions the suppression is measured on; default: those of the model.
        rounds: number of measured rounds, after one warm-up round.
        turn_seconds: how long each candidate runs per round, s; at least one call.
        rival: command of another program (benchmarks/rivals.py); precision, batch and image size are added to it.
        output: JSON file for the result.

    Raises:
        UserError: the model, an image or the rival cannot be used.
    """
    if rounds < 1:
        raise UserError(f"`rounds` is {rounds}; it must be at least 1.")
    if min(batch_sizes, default=0) < 1:
        raise UserError(f"`batch_sizes` is {batch_sizes}; each must be at least 1.")
    accelerator.check_depthwise(depthwise)
    if output is not None:
        files.check_writable(output)
    if manifest.is_export(model):  # it has one runtime and one precision
        runtimes, precisions = (manifest.read(model)[1].target,), ("float32",)  # type: ignore[assignment]
    if "openvino" in runtimes:
        precisions = _with_arithmetic(precisions)
    from efficientdet.kernels import choice

    encoded = _read_images(images)
    resident: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        location = stack.enter_context(drawn_weights.weights_of(model))
        candidates: list[_Candidate] = []
        methods = tuple(choice.find_depthwise(method) for method in depthwise)
        ways = [(name, way) for name in runtimes for way in (methods if name == "keras" else ("convolution",))]
        for (name, way), precision in itertools.product(ways, precisions):
            before = memory.resident()
            ours = detector.Detector(
                location,
                batch_size=max(batch_sizes),
                precision=precision,
                runtime=name,
                image_size=image_size,
                depthwise=way,
            )
            by = name if way == "convolution" else f"{name}, {way}"
            for batch_size in batch_sizes:
                candidates += _candidates(ours, by, precision, batch_size, encoded)
            if before is not None:
                resident[f"{by} {precision}"] = round((memory.resident() or before) - before, 1)
        size = ours.runtime.image_size
        candidates += _parts(ours, encoded)
        for precision, batch_size in itertools.product(precisions if rival else (), batch_sizes):
            words = f"--precision {_THEIR_PRECISIONS[precision]} --batch-size {batch_size}"
            command = f"{rival} {words} --image-size {size[0]} {size[1]} --turn-seconds {turn_seconds}"
            other = stack.enter_context(rivals.started(command))
            candidates.append(_Rival(other, precision, batch_size))
        rates = _measure(candidates, rounds, turn_seconds)
        ratios = _ratios(candidates, rates)
        cases = [suppression.spread_candidates(), _predicted(detector.Detector(trained) if trained else ours, encoded)]
    rows = [candidate.row(rates[candidate.name]) for candidate in candidates]
    compared, ratios["postprocess_vs_numpy"] = suppression.compare(cases, rounds)
    resident["peak"] = memory.resident_peak() or 0.0
    kind = "photographs" if images else "generated images"
    what = f"{model} at {size[0]} x {size[1]} px, {len(encoded)} {kind}, on {report.device()}"
    result = InferenceBenchmark(what=what, rows=rows + compared, ratios=ratios, resident_mb=resident)
    if output is not None:
        files.write_json(output, {**result.to_dict(), **report.circumstances()})
    return result


def _with_arithmetic(precisions: tuple[Precision, ...]) -> tuple[Precision, ...]:
    """Drops precisions that would be emulated: comparing emulation with a program that uses float32 is meaningless.

    Raises:
        UserError: no precision is left.
    """
    from efficientdet.formats import openvino_runtime

    missing = [precision for precision in precisions if not openvino_runtime.has_arithmetic(precision)]
    if missing:
        progress.console.print(f"This CPU has no instructions for {', '.join(missing)}; skipped.", markup=False)
    left = tuple(precision for precision in precisions if precision not in missing)
    if not left:
        raise UserError(f"`precisions` is {' '.join(precisions)}, for which this CPU has no instructions.")
    return left


def _read_images(folder: Path | None) -> list[bytes]:
    """Reads the files of a folder, or draws images."""
    if folder is None:
        drawn = [synthetic.draw_image(0, number, _GENERATED_SIZE)[0] for number in range(_GENERATED)]
        return [_to_jpeg(image) for image in drawn]
    if not folder.is_dir():
        raise UserError(f"`images` is `{folder}`, which is not a folder.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in images.SUFFIXES)[:_MOST]
    if not paths:
        raise UserError(f"`images` is `{folder}`, which contains no images ({', '.join(images.SUFFIXES)}).")
    return [images.read_file(path, str(path)) for path in paths]


def _to_jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _candidates(
    ours: detector.Detector, name: str, precision: str, batch_size: int, encoded: list[bytes]
) -> list[_Candidate]:
    """Creates the candidates of one runtime, the network alone and end to end, and runs each once."""
    files_of = [[encoded[(start + i) % len(encoded)] for i in range(batch_size)] for start in range(len(encoded))]
    inputs = [_letterboxed(ours, batch) for batch in files_of]

    def whole(call: int) -> Any:
        return ours.detect([images.read_image(one, "image") for one in files_of[call % len(files_of)]])

    if name.startswith("keras"):
        calls = accelerator.calls(ours.runtime, inputs)
    else:
        calls = {"network": lambda call: ours.runtime.predict(*inputs[call % len(inputs)])}
    calls["end to end"] = whole
    found = [_Candidate(part, name, precision, batch_size, call) for part, call in calls.items()]
    for candidate in found:
        candidate.call(0)
    return found


def _letterboxed(ours: detector.Detector, batch: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Decodes and letterboxes a batch for a runtime."""
    runtime = ours.runtime
    boxed = [preprocess.letterbox(images.read_image(one, "image"), runtime.image_size, runtime.resize) for one in batch]
    return np.stack([pixels for pixels, _, _ in boxed]), np.array([valid for _, valid, _ in boxed], np.int32)


def _parts(ours: detector.Detector, encoded: list[bytes]) -> list[_Candidate]:
    """Creates the candidates for the parts other than the network, with one image per call."""
    decoded = [images.read_image(one, "image") for one in encoded]
    size, resize = ours.runtime.image_size, ours.runtime.resize

    def decode(call: int) -> Any:
        return images.read_image(encoded[call % len(encoded)], "image")

    def letterbox(call: int) -> Any:
        return preprocess.letterbox(decoded[call % len(decoded)], size, resize)

    return [
        _Candidate("decode", "Pillow", "uint8", 1, decode),
        _Candidate("letterbox", "NumPy", "float32", 1, letterbox),
        _Candidate("postprocess", "host", "float32", 1, _postprocess_call(ours, encoded)),
    ]


def _postprocess_call(ours: detector.Detector, encoded: list[bytes]) -> Callable[[int], Any]:
    """Creates the call that turns raw predictions into detections on the host."""
    runtime = ours.runtime
    raw = runtime.predict(*_letterboxed(ours, encoded[:1]))
    logits, deltas = raw["class_logits"].copy(), raw["box_deltas"].copy()
    best = logits.max(axis=-1)
    return lambda call: host_postprocess.detect(logits, deltas, best, runtime.anchors, PostprocessConfig())


def _predicted(ours: detector.Detector, encoded: list[bytes]) -> suppression.Candidates:
    """Predicts candidates on the first image."""
    raw = ours.runtime.predict(*_letterboxed(ours, encoded[:1]))
    return suppression.predicted_candidates(raw, ours.runtime.anchors)


def _measure(candidates: Sequence[Any], rounds: int, turn_seconds: float) -> timing.Rates:
    """Times everything alternately; single times of the warm-up round are discarded."""
    with progress.track("benchmark inference", (rounds + 1) * len(candidates)) as bar:

        def measured(candidate: Any) -> Callable[[], float]:
            def turn() -> float:
                rate: float = candidate.turn(turn_seconds)
                bar.advance(note=candidate.name)
                return rate

            return turn

        calls = {candidate.name: measured(candidate) for candidate in candidates}
        timing.in_turns(calls, 1, warmup=0)
        for candidate in candidates:
            candidate.seconds.clear()
        return timing.in_turns(calls, rounds, warmup=0)


def _ratios(candidates: Sequence[Any], rates: timing.Rates) -> dict[str, dict[str, float]]:
    """Compares our fastest network with the rival's at one image per call, and end to end with the network alone."""

    def best_of(part: str, precisions: Sequence[str]) -> _Candidate | None:
        found = [
            candidate
            for candidate in candidates
            if (candidate.part, candidate.batch_size) == (part, 1)
            and candidate.precision in precisions
            and candidate.by != _RIVAL
        ]
        return max(found, key=lambda candidate: np.median(rates[candidate.name]), default=None)

    is_gpu = bool(report.accelerators())
    ratios = accelerator.ratios(candidates, rates, _RIVAL) if is_gpu else {}
    for precision, name in () if is_gpu else _RATIOS.items():
        # If bfloat16 is acceptable, so is float32.
        ours = best_of("network", ("float32",) if precision == "float32" else ("float32", precision))
        theirs = f"network {_RIVAL} {precision} 1"
        if ours is not None and theirs in rates:
            ratios[name] = timing.ratio(rates[ours.name], rates[theirs])
    whole = best_of("end to end", ("float32",))
    if whole is not None:
        network = whole.name.replace("end to end", "network")
        ratios["end_to_end_vs_network"] = timing.ratio(rates[whole.name], rates[network])
    return ratios
