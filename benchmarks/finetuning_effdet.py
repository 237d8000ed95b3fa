"""effdet's side of the comparison (finetuning_compare.py): one training as its own script does it, in this process.

    .venv-parity/bin/python benchmarks/finetuning_effdet.py JOB.json RESULT.json

A job is JSON: `task` is `train` or `features`, the rest are the arguments of that function. Nothing of ours takes part
but what lets effdet be imported without torchvision (tests/parity/reference.py).

effdet's package brings network, anchors, targets, losses, datasets, augmentation and detections; its train.py is not
part of it, so the loop is written here with that script's defaults: SGD with momentum 0.9 and weight decay 4e-5 on
kernels, gradients clipped to a norm of 10, timm's cosine from `rate` to 1e-5 after a warm-up from 1e-4, optionally
averaged weights. Where the script is made for COCO and would hurt a short run, this one is kinder: the rate moves with
every step instead of every epoch, the warm-up of five epochs is a tenth of the run at most, batches span epochs so that
each is full, and the decay of the average is that of its own example of fine-tuning, 0.9966, instead of 0.9998.
"""

import copy
import importlib.util
import json
import os
import random
import resource
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

# Threads that spin while they wait take the core from the one they wait for, on a machine that others use too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "parity"))

MOMENTUM, WEIGHT_DECAY, CLIP_NORM = 0.9, 4e-5, 10.0
FIRST_RATE, LAST_RATE, WARMUP_EPOCHS, LONGEST_WARMUP = 1e-4, 1e-5, 5, 0.1
AVERAGE_DECAY = 0.9966
MOST_DETECTIONS = 100
"""Of an image: `max_det_per_image`, its default; what suppression finds beyond is cut off."""
SGD = "momentum"
"""timm's name of SGD with plain momentum."""
ANNOTATIONS, IMAGES, BACKBONE = "instances.json", "images", "backbone.safetensors"


def main() -> None:
    """Does what the job says."""
    job = json.loads(Path(sys.argv[1]).read_text())
    result = {"train": train, "features": features}[job.pop("task")](**job)
    Path(sys.argv[2]).write_text(json.dumps(result))


def train(
    *,
    data: str,
    model: str,
    num_classes: int,
    image_size: tuple[int, int],
    batch_size: int,
    steps: int,
    warm_steps: int,
    rate: float,
    method: str | None,
    scales: tuple[float, float],
    seed: int,
    splits: list[str],
    output: str,
    workers: int,
    tries_soft: bool,
) -> dict[str, Any]:
    """Trains once and writes what it finds on each split.

    Args:
        data: folder that finetuning_unpack.py wrote, with the split `train`.
        model: effdet's name.
        num_classes: outputs; the highest category id, as effdet counts them.
        image_size: height and width of the network input, px.
        batch_size: images a step.
        steps: of the run.
        warm_steps: steps at the start that the speed is also given without.
        rate: peak of the learning rate.
        method: optimiser, `adam`; None: SGD with momentum, as its script.
        scales: smallest and largest scale of a training image.
        seed: of weights, order and augmentation.
        splits: to detect on; the last one is what both are compared on.
        output: folder for the detections, in COCO's results format.
        workers: processes that load images.
        tries_soft: detect on the last split with effdet's soft suppression too, which takes minutes.
    """
    import torch

    began = time.monotonic()
    _seed(seed)
    bench = _build(model, num_classes, tuple(image_size), Path(data) / BACKBONE)
    dataset, collate = _training_data(Path(data), bench, tuple(scales))
    layout, trial = _faster_layout(bench, collate([dataset[number] for number in range(batch_size)]))
    bench.to(memory_format=getattr(torch, layout))
    _seed(seed)
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=order(len(dataset), steps * batch_size, seed),
        num_workers=workers,
        collate_fn=collate,
    )
    run = _Training(bench, method or SGD, rate, steps, warmup_steps(len(dataset), batch_size, steps))
    used = _processor_seconds()
    seconds = run.go(loader, layout)
    return {
        "images_per_second": (steps - warm_steps) * batch_size / sum(seconds[warm_steps:]),
        "images_per_second_with_start": steps * batch_size / sum(seconds),
        "minutes": (time.monotonic() - began - trial) / 60,
        "processor_seconds_a_step": (_processor_seconds() - used) / steps,
        "peak_rate": rate,
        "loss": float(np.mean(run.losses[-warm_steps:])),
        "detections": _detect_all(run.variants(), Path(data), splits, Path(output), layout, tries_soft),
        "layout": layout,
        "threads": torch.get_num_threads(),
        "versions": {name: metadata.version(name) for name in ("torch", "effdet", "timm")},
    }


def _processor_seconds() -> float:
    """Counts the processor's time so far, of the processes that loaded images too, once they have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def order(num_images: int, length: int, seed: int) -> list[int]:
    """Draws which image comes when: one epoch after the other, each a permutation; the last one may be cut short."""
    draw = np.random.default_rng(seed)
    epochs = [draw.permutation(num_images) for _ in range(-(-length // num_images))]
    return [int(number) for number in np.concatenate(epochs)[:length]]


def warmup_steps(num_images: int, batch_size: int, steps: int) -> int:
    """Computes the length of the warm-up: five epochs, as the script has it, but at most a tenth of the run."""
    return int(min(WARMUP_EPOCHS * num_images / batch_size, LONGEST_WARMUP * steps))


def suppress(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, threshold: float, most: int) -> np.ndarray:
    """Finds the boxes that overlap no better one of their class by more than `threshold`: torchvision's `batched_nms`.

    Args:
        boxes: float[N, 4], x1, y1, x2, y2.
        scores: float[N].
        classes: int[N].
        threshold: IoU.
        most: boxes that the caller looks at.

    Returns:
        int64[K], positions of the boxes that stay, best first; K is `most` or less.
    """
    left = np.argsort(-scores, kind="stable")
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    while len(left) and len(kept) < most:
        best, left = left[0], left[1:]
        kept.append(best)
        top_left = np.maximum(boxes[left, :2], boxes[best, :2])
        sides = np.clip(np.minimum(boxes[left, 2:], boxes[best, 2:]) - top_left, 0, None)
        intersection = sides[:, 0] * sides[:, 1]
        union = areas[left] + areas[best] - intersection
        left = left[(classes[left] != classes[best]) | (intersection <= threshold * union)]
    return np.array(kept, np.int64)


def _seed(seed: int) -> None:
    """Seeds all that draws; the processes that load images are seeded from PyTorch's."""
    import torch

    random.seed(seed)
    torch.manual_seed(seed)


def _build(model: str, num_classes: int, image_size: tuple[int, int], backbone: Path) -> Any:
    """Builds network, targets and losses; the backbone has learned on ImageNet, the rest is random."""
    import reference
    import torch
    from safetensors.torch import load_file

    has_torchvision = importlib.util.find_spec("torchvision") is not None
    effdet = reference.import_effdet()
    if not has_torchvision:
        effdet.anchors.batched_nms = _suppress_tensors
    # Targets are made by the processes that load images, as in the script.
    bench = effdet.create_model(
        model, "train", num_classes=num_classes, image_size=image_size, pretrained_backbone=False, bench_labeler=False
    )
    tensors = load_file(backbone)
    left, unknown = bench.model.backbone.load_state_dict(tensors, strict=False)
    wrong = [*unknown, *(name for name in left if not name.endswith("num_batches_tracked"))]
    if wrong:
        raise SystemExit(f"`{backbone}` does not fit {model}: {', '.join(wrong[:3])}.")
    return bench.to(torch.float32)


def _suppress_tensors(boxes: Any, scores: Any, idxs: Any, iou_threshold: float) -> Any:
    """Calls `suppress` as torchvision's `batched_nms` is called."""
    import torch

    arrays = (each.numpy() for each in (boxes, scores, idxs))
    return torch.from_numpy(suppress(*arrays, iou_threshold, MOST_DETECTIONS))


def _dataset(folder: Path, transform: Any) -> Any:
    """Opens a split as effdet does."""
    from effdet.data import parsers
    from effdet.data.dataset import DetectionDatset

    parser = parsers.create_parser("coco", cfg=parsers.CocoParserCfg(ann_filename=str(folder / ANNOTATIONS)))
    return DetectionDatset(data_dir=folder / IMAGES, parser=parser, transform=transform)


def _input(bench: Any) -> dict[str, Any]:
    """Reads mean, standard deviation and colour of the padding that belong to a network."""
    from effdet.data import resolve_input_config

    return resolve_input_config({}, bench.config)


def _training_data(data: Path, bench: Any, scales: tuple[float, float]) -> tuple[Any, Any]:
    """Makes the training images with effdet's augmentation, and what makes batches and targets of them."""
    from effdet.anchors import AnchorLabeler, Anchors
    from effdet.data import loader, transforms

    given = _input(bench)
    transform = transforms.transforms_coco_train(
        tuple(bench.config.image_size),
        interpolation="random",
        use_prefetcher=True,
        fill_color=given["fill_color"],
        mean=given["mean"],
    )
    (resize,) = (each for each in transform.transforms if isinstance(each, transforms.RandomResizePad))
    resize.scale = scales
    labeler = AnchorLabeler(Anchors.from_config(bench.config), bench.config.num_classes, match_threshold=0.5)
    return _dataset(data / "train", transform), loader.DetectionFastCollate(anchor_labeler=labeler)


def _ready(bench: Any, images: Any, layout: str) -> Any:
    """Normalises a batch: what effdet's PrefetchLoader does on a GPU and cannot do on a processor."""
    import torch

    given = _input(bench)
    mean, std = (torch.tensor(given[name]).view(1, 3, 1, 1) * 255 for name in ("mean", "std"))
    return images.float().sub_(mean).div_(std).to(memory_format=getattr(torch, layout))


def _faster_layout(bench: Any, batch: tuple[Any, Any]) -> tuple[str, float]:
    """Finds the layout in which an update of a copy takes less time; says how long that took, s."""
    import torch

    began = time.monotonic()
    images, target = batch
    seconds = {}
    for layout in ("contiguous_format", "channels_last"):
        network = copy.deepcopy(bench).to(memory_format=getattr(torch, layout)).train()
        pixels = _ready(bench, images.clone(), layout)
        times = []
        for _ in range(3):
            mark = time.monotonic()
            network(pixels, target)["loss"].backward()
            times.append(time.monotonic() - mark)
        seconds[layout] = min(times)
    return min(seconds, key=seconds.__getitem__), time.monotonic() - began


class _Training:
    """The loop of effdet's script."""

    def __init__(self, bench: Any, method: str, rate: float, steps: int, warmup: int):
        """Makes optimiser, schedule and averages."""
        from timm import optim, scheduler, utils

        self._bench = bench.train()
        self._optimizer = optim.create_optimizer_v2(
            bench, opt=method, lr=rate, weight_decay=WEIGHT_DECAY, **({"momentum": MOMENTUM} if method == SGD else {})
        )
        self._schedule = scheduler.CosineLRScheduler(
            self._optimizer,
            t_initial=steps,
            lr_min=LAST_RATE,
            warmup_t=warmup,
            warmup_lr_init=FIRST_RATE,
            t_in_epochs=False,
        )
        self._average = utils.ModelEmaV2(bench, decay=AVERAGE_DECAY)
        self._as_ours = utils.ModelEmaV2(bench)
        self.losses: list[float] = []

    def go(self, loader: Any, layout: str) -> list[float]:
        """Trains; returns the time of each step, s."""
        seconds = []
        mark = time.monotonic()
        for step, (images, target) in enumerate(loader, start=1):
            self._update(_ready(self._bench, images, layout), target, step)
            seconds.append(time.monotonic() - mark)
            # Not part of effdet's training, so the clock stands still: what our average would make of its weights.
            self._as_ours.decay = min(0.9998, (1 + step) / (10 + step))
            self._as_ours.update(self._bench)
            if step % 20 == 0:
                rate = self._optimizer.param_groups[0]["lr"]
                print(f"step {step}: loss {np.mean(self.losses[-20:]):.3f}, lr {rate:.2e}", file=sys.stderr)
            mark = time.monotonic()
        return seconds

    def _update(self, images: Any, target: dict[str, Any], step: int) -> None:
        """Makes one step."""
        import torch

        self._optimizer.zero_grad(set_to_none=True)
        loss = self._bench(images, target)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._bench.parameters(), CLIP_NORM)
        self._optimizer.step()
        self._average.update(self._bench)
        self._schedule.step_update(num_updates=step)
        self.losses.append(loss.item())

    def variants(self) -> dict[str, Any]:
        """Lists the networks to evaluate: as trained, averaged as effdet does, and as we do."""
        averages = {"averages": self._average, "averages as ours": self._as_ours}
        return {"last weights": self._bench.model, **{name: each.module.model for name, each in averages.items()}}


def _detect_all(
    networks: dict[str, Any], data: Path, splits: list[str], output: Path, layout: str, tries_soft: bool
) -> dict[str, dict[str, str]]:
    """Writes what each network finds in each split; returns the files."""
    found = {
        name: {split: _detect(network, data / split, output / name, layout) for split in splits}
        for name, network in networks.items()
    }
    for name in ("last weights", "averages") if tries_soft else ():
        folder, soft = data / splits[-1], f"{name}, soft suppression"
        found[soft] = {splits[-1]: _detect(networks[name], folder, output / soft, layout, is_soft=True)}
    return found


def _detect(network: Any, folder: Path, output: Path, layout: str, *, is_soft: bool = False) -> str:
    """Writes what a network finds in a split, with effdet's own detections; returns the file."""
    import torch
    from effdet import DetBenchPredict
    from effdet.data import loader, transforms

    bench = DetBenchPredict(network).eval()
    bench.soft_nms = is_soft
    # effdet fails where an image has fewer candidates than it looks at.
    bench.max_detection_points = min(bench.max_detection_points, len(bench.anchors.boxes) * bench.num_classes)
    given = _input(bench)
    transform = transforms.transforms_coco_eval(
        tuple(bench.config.image_size), use_prefetcher=True, fill_color=given["fill_color"], mean=given["mean"]
    )
    dataset = _dataset(folder, transform)
    known = set(dataset.parser.cat_ids)
    batches = torch.utils.data.DataLoader(dataset, batch_size=8, collate_fn=loader.DetectionFastCollate())
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for images, target in batches:
            facts = {"img_scale": target["img_scale"], "img_size": target["img_size"]}
            found = bench(_ready(bench, images, layout), facts).double().numpy()
            for place, detections in zip(target["img_idx"].tolist(), found, strict=True):
                image_id = dataset.parser.img_ids[place]
                rows += [row for row in _rows(image_id, detections) if row["category_id"] in known]
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{folder.name}.json"
    path.write_text(json.dumps(rows))
    return str(path)


def _rows(image_id: int, detections: np.ndarray) -> Iterator[dict[str, Any]]:
    """Writes the detections of an image, x1, y1, x2, y2, score, class, in COCO's results format, without padding."""
    for x1, y1, x2, y2, score, category in detections[detections[:, 4] > 0].tolist():
        box = [x1, y1, max(x2 - x1, 0.0), max(y2 - y1, 0.0)]
        yield {"image_id": image_id, "category_id": int(category), "bbox": box, "score": score}


def features(*, data: str, model: str, image: str, output: str) -> dict[str, Any]:
    """Writes what the backbone that effdet's training starts from answers to an image.

    Args:
        data: folder with the backbone.
        model: effdet's name.
        image: .npy, float32[1, 3, H, W], normalised.
        output: .npz to write: level_3 to level_5, float32[1, D, h, w].
    """
    import torch

    pixels = torch.from_numpy(np.load(image))
    bench = _build(model, 3, tuple(pixels.shape[2:]), Path(data) / BACKBONE).eval()
    with torch.inference_mode():
        levels = [level.numpy() for level in bench.model.backbone(pixels)]
    np.savez(output, **{f"level_{number}": level for number, level in enumerate(levels, start=3)})
    return {}


if __name__ == "__main__":
    main()
