"""effdet, the PyTorch port of EfficientDet, as a rival of `efficientdet benchmark` (benchmarks/rivals.py).

    .venv-parity/bin/python benchmarks/effdet_rival.py inference --precision bfloat16

On a GPU (`--device cuda`) it is PyTorch at its best: channels last, compiled by torch.compile, with CUDA graphs for
inference, and TF32 unless float32 is asked for. On a CPU it is eager, in the faster of the two layouts.

It runs in an environment of its own, the one that `make parity` makes, and imports nothing of ours but what lets effdet
live without torchvision (tests/parity/reference.py). On each line `go` at its standard input it works once and answers
with a line of JSON: `rate`, images/s, and what it knows beside that. Weights are random: speed does not depend on them.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Threads that spin while they wait take the core from the one they wait for, on a machine that others use too: 6 to 20
# times slower there.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "parity"))


def main() -> None:
    """Reads the command line, gets ready, and works when told to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    inference = modes.add_parser("inference", help="the network alone, in inference mode")
    _add_common(inference)
    inference.add_argument("--batch-size", type=int, default=1)
    inference.add_argument("--turn-seconds", type=float, default=2.0, help="how long a turn lasts, one call at least")
    inference.set_defaults(prepare=prepare_inference)
    train = modes.add_parser("train", help="whole updates: targets, losses, gradients, clipping, momentum")
    _add_common(train)
    train.add_argument("--batch-size", type=int, default=4)
    train.add_argument("--boxes", type=int, default=8, help="on each image")
    train.add_argument("--calls", type=int, default=2, help="updates a turn")
    train.set_defaults(prepare=prepare_train)
    options = parser.parse_args()
    work = options.prepare(options)
    for line in sys.stdin:
        if line.strip() == "go":
            print(json.dumps(work()), flush=True)


def _add_common(parser: argparse.ArgumentParser) -> None:
    """Adds what every mode asks for."""
    parser.add_argument("--model", default="tf_efficientdet_d0", help="effdet's name")
    parser.add_argument("--image-size", type=int, nargs=2, default=[512, 512], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--precision", choices=["float32", "tf32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="with torch.compile; on a GPU unless told not to"
    )
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")


def _set_up(options: argparse.Namespace) -> tuple[list[str], bool, Callable[[], Any]]:
    """Sets PyTorch up: the layouts to try, whether to compile, and what makes the context of one call."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    has_tf32 = options.precision != "float32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = has_tf32
    torch.backends.cudnn.benchmark = True
    is_gpu = options.device == "cuda"
    is_half = options.precision in ("bfloat16", "float16")
    dtype = getattr(torch, options.precision) if is_half else None
    layouts = ["channels_last"] if is_gpu else ["contiguous_format", "channels_last"]
    compiles = is_gpu if options.compile is None else options.compile
    return layouts, compiles, lambda: torch.autocast(options.device, dtype, enabled=is_half)


def _facts(options: argparse.Namespace, layout: str, compiles: bool) -> dict[str, Any]:
    """Says what a rate depends on."""
    import torch

    return {
        "layout": layout,
        "compiled": compiles,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def prepare_inference(options: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """Makes the network in the faster of the layouts and returns the work of one turn."""
    import reference
    import torch

    names, compiles, autocast = _set_up(options)
    model = reference.build(options.model, tuple(options.image_size)).to(options.device)
    images = torch.randn(options.batch_size, 3, *options.image_size, device=options.device)
    network = torch.compile(model, mode="reduce-overhead", dynamic=False) if compiles else model

    def call(images: Any) -> float:
        began = time.perf_counter()
        with torch.inference_mode(), autocast():
            network(images)
            if options.device == "cuda":
                torch.cuda.synchronize()
        return time.perf_counter() - began

    layouts = {}
    for layout in names:
        model.to(memory_format=getattr(torch, layout))
        moved = images.to(memory_format=getattr(torch, layout))
        call(moved)
        call(moved)  # CUDA graphs are made in the second and third call
        layouts[layout] = min(call(moved) for _ in range(3))
    layout = min(layouts, key=layouts.__getitem__)
    model.to(memory_format=getattr(torch, layout))
    images = images.to(memory_format=getattr(torch, layout))
    facts = _facts(options, layout, compiles)

    def work() -> dict[str, Any]:
        seconds = [call(images)]
        while sum(seconds) < options.turn_seconds:
            seconds.append(call(images))
        return {"rate": options.batch_size * len(seconds) / sum(seconds), "seconds": seconds, **facts}

    return work


def prepare_train(options: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """Makes network, targets, losses and optimiser, as effdet's own script does, in the faster of the layouts.

    Without the weight average that ours has. Its own compilation of the losses needs torchvision; torch.compile does
    without, and compiles network and losses, while targets stay eager.
    """
    import reference
    import torch

    names, compiles, autocast = _set_up(options)
    height, width = options.image_size
    bench = reference.build(options.model, (height, width), bench_task="train", bench_labeler=True)
    bench.to(options.device).train()
    if compiles:
        bench.model.compile(dynamic=False)
        bench.loss_fn.compile(dynamic=False)
    weights = [weight for weight in bench.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=1e-4, momentum=0.9, weight_decay=4e-5)
    scaler = torch.amp.GradScaler(options.device, enabled=options.precision == "float16")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(options.batch_size, 3, height, width, generator=generator).to(options.device)
    corners = torch.rand(options.batch_size, options.boxes, 2, generator=generator) * min(height, width) / 2
    sides = (torch.rand(corners.shape, generator=generator) / 4 + 0.1) * min(height, width)
    labels = torch.randint(1, 91, (options.batch_size, options.boxes), generator=generator).float()
    targets = {"bbox": torch.cat([corners, corners + sides], -1).to(options.device), "cls": labels.to(options.device)}

    def update(images: Any) -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            loss = bench(images, targets)["loss"]
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(weights, 10.0)
        scaler.step(optimizer)
        scaler.update()

    def timed(images: Any, calls: int) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            update(images)
        if options.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    layouts = {}
    for layout in names:
        bench.to(memory_format=getattr(torch, layout))
        moved = images.to(memory_format=getattr(torch, layout))
        timed(moved, 1)
        layouts[layout] = min(timed(moved, 1) for _ in range(2))
    layout = min(layouts, key=layouts.__getitem__)
    bench.to(memory_format=getattr(torch, layout))
    images = images.to(memory_format=getattr(torch, layout))
    facts = _facts(options, layout, compiles)

    def work() -> dict[str, Any]:
        return {"rate": options.batch_size * options.calls / timed(images, options.calls), **facts}

    return work


if __name__ == "__main__":
    main()
