"""Where the time of a training step, or of an answer, goes on a GPU (JAX): its kernels, summed by what they do.

    python benchmarks/gpu_profile.py train --batch-size 64 --depthwise convolution --output profile.json

What an operation is for comes from its place in the network, which XLA keeps in the names of what it compiled.
"""

import argparse
import collections
import contextlib
import fcntl
import itertools
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from efficientdet import backend


def main() -> None:
    """Reads the command line, profiles, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "inference"])
    parser.add_argument("--preset", default="d0")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--precision", default="mixed_bfloat16")
    parser.add_argument("--depthwise", default="convolution")
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--most", type=int, default=40, help="kernels to list")
    parser.add_argument("--text", type=Path, help="file for the compiled program")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    backend.choose("jax")
    call, compiled = (_training if options.what == "train" else _inference)(options)
    call()
    text = compiled()
    if options.text:
        options.text.write_text(text)
    with alone():
        found = profile(call, options.calls, _operations(text))
    print(f"{found['wall_milliseconds']:.2f} ms a call by the clock")
    options.output.write_text(
        json.dumps({"options": {**vars(options), "output": None, "text": None}, **found}, indent=1) + "\n"
    )
    print(f"{found['milliseconds']:.2f} ms a call, {found['kernels']} kernels")
    for table in ("by_kind", "by_part"):
        print(table, json.dumps(found[table]))
    for row in found["largest"][: options.most]:
        print(f"{row['milliseconds']:8.3f} {row['count']:5.0f}  {row['name'][:60]:60} {row['operation'][-110:]}")


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Waits for other programs that measure on the same GPU, if GPU_LOCK names a file that they share."""
    with Path(os.environ.get("GPU_LOCK", os.devnull)).open("a") as file:
        if file.name != os.devnull:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def profile(call: Any, calls: int, operations: dict[str, str]) -> dict[str, Any]:
    """Calls a function three times to warm up, ten times by the clock, and `calls` times under the profiler.

    Args:
        call: to profile; waits until the device is done.
        calls: under the profiler.
        operations: kernel -> its place in the network.

    Returns:
        milliseconds a call on the device and by the clock, kernels a call, sums by kind of kernel and by part of the
        network, and the kernels that take most.
    """
    import jax

    for _ in range(3):
        call()
    began = time.perf_counter()
    for _ in range(10):
        call()
    wall = (time.perf_counter() - began) / 10 * 1000
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):
                call()
        traces = sorted(Path(folder).rglob("*.xplane.pb"))
        planes = list(jax.profiler.ProfileData.from_file(str(traces[-1])).planes)
    times: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
    devices = [plane for plane in planes if "GPU" in plane.name] or planes
    for line in itertools.chain.from_iterable(plane.lines for plane in devices):
        if not line.name.startswith(("Stream", "tf_XLAPjRt")):
            continue
        for event in line.events:
            times[event.name, operations.get(event.name, "")].append(event.duration_ns / 1e6)
    by_kind: dict[str, float] = collections.Counter()
    by_part: dict[str, float] = collections.Counter()
    for (name, operation), each in times.items():
        by_kind[_kind(name)] += sum(each) / calls
        by_part[_part(operation)] += sum(each) / calls
    largest = [
        {"name": name, "operation": operation, "milliseconds": sum(each) / calls, "count": len(each) / calls}
        for (name, operation), each in times.items()
    ]
    return {
        "milliseconds": sum(by_kind.values()),
        "wall_milliseconds": wall,
        "kernels": sum(row["count"] for row in largest),
        "by_kind": {name: round(value, 3) for name, value in by_kind.most_common()},
        "by_part": {name: round(value, 3) for name, value in by_part.most_common()},
        "largest": sorted(largest, key=lambda row: -row["milliseconds"])[:400],
    }


def _operations(text: str) -> dict[str, str]:
    """Reads from a compiled program what each of its kernels is for: kernel -> JAX's path of the operation."""
    found = {}
    for name, path in re.findall(r"%([\w.-]+) = [^\n]*?op_name=\"([^\"]*)\"", text):
        found.setdefault(name.replace(".", "_").replace("-", "_"), path)
    return found


def _kind(name: str) -> str:
    """Names a kernel without its number."""
    return re.sub(r"[._]?\d+", "", name)[:60]


def _part(operation: str) -> str:
    """Names the layer's kind and the direction: `transpose` in JAX's path is the gradient."""
    direction = "back" if "transpose(" in operation else "forward"
    found = re.findall(
        r"(depthwise|expand|project|squeeze|excit\w*|batch_norm|bn\w*|fuse\w*|class\w*|box\w*|stem)", operation
    )
    return f"{direction} {'/'.join(found[-2:])} {operation.rsplit('/', 1)[-1][:40]}"


def _training(options: argparse.Namespace) -> Any:
    """Makes a training step as `efficientdet benchmark train` does."""
    import dataclasses

    from efficientdet import presets
    from efficientdet.benchmarks import training

    start = presets.find_preset(options.preset)
    chosen = dataclasses.replace(start.training, batch_size=options.batch_size, precision=options.precision, devices=1)
    candidate = training._Candidate(dataclasses.replace(start, training=chosen), None, 1, 8, options.depthwise)
    step, state, batch = candidate._step, candidate._state, candidate._next()
    text = step.lower(state, batch).compile().as_text() if hasattr(step, "lower") else ""
    return candidate.measure, lambda: text


def _inference(options: argparse.Namespace) -> Any:
    """Makes the answer of one compiled program."""
    import numpy as np

    from efficientdet.benchmarks import drawn_weights
    from efficientdet.formats.keras import KerasRuntime

    with drawn_weights.weights_of(options.preset) as path:
        runtime = KerasRuntime(path, precision=options.precision, depthwise=options.depthwise)
    height, width = runtime.image_size
    images = np.random.default_rng(0).integers(0, 256, (options.batch_size, height, width, 3), dtype=np.uint8)
    placed = runtime.place(images, np.array([[height, width]] * options.batch_size, np.int32))
    return (
        lambda: runtime.detect_placed(placed),
        lambda: runtime._detect.lower(*runtime._values, placed).compile().as_text(),
    )


if __name__ == "__main__":
    main()
