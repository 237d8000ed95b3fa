"""Prints the tables of README and docs from the files in benchmarks/results/, into the places that name them.

A table stands between `<!-- results: NAME -->` and `<!-- end -->`, NAME one of those below. A table whose file is not
there says so. `python benchmarks/tables.py` writes them; `--check` only tells whether they are up to date.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro

_ROOT = Path(__file__).parents[1]
_RESULTS = _ROOT / "benchmarks" / "results"
_DOCUMENTS = ("README.md", "docs/performance.md", "docs/export.md", "docs/serving.md", "docs/predict.md")
_END = "<!-- end -->"


def main(*, check: bool = False) -> None:
    """Writes the tables.

    Args:
        check: change nothing; fail if a table is out of date.
    """
    stale = []
    for name in _DOCUMENTS:
        path = _ROOT / name
        text = path.read_text()
        new = fill(text)
        if new == text:
            continue
        stale.append(name)
        if not check:
            path.write_text(new)
    if check and stale:
        sys.exit(f"Tables of {', '.join(stale)} are not those of benchmarks/results/; run python benchmarks/tables.py")


def fill(text: str) -> str:
    """Puts each table in its place."""
    parts = text.split("<!-- results: ")
    for number, part in enumerate(parts[1:], 1):
        name, _, rest = part.partition(" -->")
        _, _, after = rest.partition(_END)
        parts[number] = f"{name} -->\n{_TABLES[name]()}\n{_END}{after}"
    return "<!-- results: ".join(parts)


def _read(name: str) -> dict[str, Any] | None:
    path = _RESULTS / name
    return json.loads(path.read_text()) if path.exists() else None


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _range(value: dict[str, float]) -> str:
    median, least, most = (
        f"{value[name]:{',.0f' if value[name] >= 1000 else '.3g'}}" for name in ("median", "min", "max")
    )
    return f"{median} ({least} to {most})"


_GOALS = {
    "input_vs_conventional": ("input pipeline, 512 px", "the conventional order", 6.0),
    "input_vs_decode": ("input pipeline, 512 px", "only decoding whole JPEGs", 0.75),
    "train_cpu_vs_effdet": ("training step, float32", "effdet (PyTorch), eager", 1.5),
    "inference_cpu_fp32_vs_effdet": ("network, float32, batch 1", "effdet (PyTorch), eager", 2.5),
    "inference_cpu_bf16_vs_effdet": ("network, bfloat16, batch 1", "effdet (PyTorch), autocast", 2.4),
    "postprocess_vs_numpy": ("post-processing, 5,000 candidates", "the reference implementation, in NumPy", 20.0),
    "train_gpu_vs_effdet": ("training step, bfloat16, on a GPU", "effdet (PyTorch), compiled", 1.5),
    "inference_gpu_vs_effdet": ("network, bfloat16, on a GPU", "effdet (PyTorch), compiled", 1.5),
}
_FILES = ("train-gpu.json", "inference-gpu.json", "input-cpu.json", "train-cpu.json", "inference-cpu.json")


def _ratios() -> str:
    """Our rate divided by another program's, for D0; where both inference files have a ratio, the CPU's counts."""
    found: dict[str, Any] = {}
    for name in _FILES:
        found |= (_read(name) or {}).get("ratios", {})
    rows = [
        [what, theirs, _range(found[name]), f"{goal:g}"]
        for name, (what, theirs, goal) in _GOALS.items()
        if name in found
    ]
    if not rows:
        return "Not measured yet."
    return _table(
        ["EfficientDet-D0; on a CPU unless it says GPU", "compared with", "ratio of rates: median (range)", "goal"],
        rows,
    )


def _roofline() -> str:
    """What GPUs allow, computed."""
    found = _read("roofline-d0.json")
    if found is None:
        return "Not computed yet."
    rows = [[row["gpu"], f"{row['inference']:,}", f"{row['training']:,}"] for row in found["rows"]]
    return _table(["GPU", "inference, images/s at most", "training, images/s at most"], rows)


def _inference() -> str:
    """Each part of inference on a CPU."""
    found = _read("inference-cpu.json")
    if found is None:
        return "Not measured yet."
    rows = []
    for row in found["rows"]:
        by = {"rival": "effdet, PyTorch"}.get(row["by"], row["by"])
        latencies = [row["latency_ms"][name] for name in ("p50", "p90", "p99")]
        times = [f"{latency:,.0f}" if latency >= 100 else f"{latency:.3g}" for latency in latencies]
        rate = f"{row['images_per_second']['median']:.3g}"
        rows.append([f"{row['part']}, {by}, {row['precision']}", str(row["batch_size"]), rate, *times])
    hardware = found["hardware"]
    header = [f"{hardware['cores']} cores of an {hardware['cpu']}, load {hardware['load']}", "batch", "images/s"]
    return _table([*header, "p50, ms", "p90", "p99"], rows)


def _input() -> str:
    """The input pipeline compared with bare decoding and with the conventional order."""
    found = _read("input-cpu.json")
    if found is None:
        return "Not measured yet."
    rows = [
        [row["name"], f"{row['median']:.0f} ({row['min']:.0f} to {row['max']:.0f})", f"{row['processor_ms']:.2f}"]
        for row in found["rows"]
    ]
    hardware = found["hardware"]
    header = f"{hardware['cores']} cores of an {hardware['cpu']}, load {hardware['load']}"
    return _table([header, "images/s: median (range)", "CPU ms per image"], rows)


def _training() -> str:
    """The training step on a CPU compared with effdet's."""
    found = _read("train-cpu.json")
    if found is None:
        return "Not measured yet."
    rows = [
        [
            f"{row['preset']}, {row['image_size'][0]} px, batch {row['batch_size']}, {row['precision']}",
            _range(row["images_per_second"]),
            f"{row['peak_memory_mb']:,.0f}",
        ]
        for row in found["rows"]
    ]
    if found["rival"] is not None:
        rows.append(["effdet (PyTorch), eager", _range(found["rival"]["images_per_second"]), ""])
    hardware = found["hardware"]
    header = f"{hardware['cores']} cores of an {hardware['cpu']}, load {hardware['load']}"
    return _table([header, "images/s: median (range)", "peak memory, MB"], rows)


def _gpu() -> str:
    """Training step and inference on a GPU, and the ratios to effdet's."""
    rows = []
    name = ""
    for file, goal in (("train-gpu.json", "train_gpu_vs_effdet"), ("inference-gpu.json", "inference_gpu_vs_effdet")):
        found = _read(file)
        if found is None:
            continue
        name = ", ".join(found["hardware"]["devices"])
        for row in found["rows"]:
            if "part" not in row:
                what = f"training, depthwise by {row['depthwise']}, {row['precision']}"
            elif row["part"].startswith("network"):
                what = f"{row['part']}, {row['by'].replace('rival', 'effdet (PyTorch)')}, {row['precision']}"
            else:
                continue
            p50 = f"{row['latency_ms']['p50']:.3g}" if "latency_ms" in row else ""
            rows.append([what, str(row["batch_size"]), _range(row["images_per_second"]), p50])
        rival = found.get("rival")
        if rival is not None:
            rows.append(["training, effdet (PyTorch)", "", _range(rival["images_per_second"]), ""])
        if goal in found["ratios"]:
            rows.append([f"`{goal}`, goal 1.5", "", _range(found["ratios"][goal]), ""])
    if not rows:
        return "Not measured yet."
    return _table([f"EfficientDet-D0 on one {name}", "batch", "images/s: median (range)", "p50, ms"], rows)


_GROWTH = {
    "model": "network of {}, batch 1",
    "side": "network of D0, {0} x {0} px, batch 1",
    "batch": "network of D0, 512 px, batch {}",
    "training batch": "training D0, 256 px, batch {}",
    "images/s, by image size": "input pipeline, {0} x {0} px",
    "images/s, by boxes an image": "input pipeline, {} boxes per image",
    "seconds to the first batch, by shards": "seconds to the first batch, {} shards",
}


def _growth() -> str:
    """Speed and memory by batch, size, boxes, shards and model."""
    found = _read("growth-cpu.json")
    if found is None:
        return "Not measured yet."
    rows = []
    for row in found["rows"]:
        memory = row.get("memory_mb")
        what = _GROWTH[row["what"]].format(str(row["value"]).upper())
        rows.append([what, _range(row["speed"]), "" if memory is None else f"{memory:,.0f}"])
    hardware = found["hardware"]
    header = f"{hardware['cores']} cores of an {hardware['cpu']}, load {hardware['load']}"
    return _table([header, "images/s: median (range)", "memory, MB"], rows)


def _exports(file: str) -> str:
    """Each format and precision of one model: size, AP, speed, and how far from Keras."""
    found = _read(file)
    if found is None:
        return "Not measured yet."
    rows = []
    for row in found["rows"]:
        name = f"{row['format']}, {row['precision']}"
        if "refused" in row:
            rows.append([name, "", "", "", "", "", f"refused: {row['refused']}"])
            continue
        apart = row["agreement"]
        latency = row["latency_ms"]
        rows.append(
            [
                f"{name}, {row['answer']}" if row["answer"] else name,
                f"{row['megabytes']:.1f}",
                "" if row["ap"] is None else f"{100 * row['ap']:.1f}",
                f"{latency['p50']:.3g}",
                f"{latency['p99']:.3g}",
                f"{row['images_per_second']['median']:.3g}",
                f"{apart['score_difference']:.0e}, {apart['box_difference']:.2g}" if apart else "",
            ]
        )
    hardware = found["hardware"]
    header = f"{hardware['cores']} cores of an {hardware['cpu']}, load {hardware['load']}"
    return _table([header, "MB", "AP, %", "p50, ms", "p99", "images/s", "difference: score, px"], rows)


def _serving() -> str:
    """The throughput of the service compared with direct calls."""
    found = _read("serving.json")
    if found is None:
        return "Not measured yet."
    rows = [[name, _range(value)] for name, value in found["ratios"].items()]
    return _table(
        ["`serve` compared with `Detector`, D0 at 512 px", "ratio of images/s: median (range), goal 0.8"], rows
    )


def _tiles() -> str:
    """What tiles detect that the whole image does not."""
    found = _read("tiles.json")
    if found is None:
        return "Not measured yet."
    rows = [
        [name, f"{row['AP']:.3f}", f"{row['AP50']:.3f}", f"{row['boxes_shown']:,}", f"{row['ms']:,.0f}"]
        for name, row in found["rows"].items()
    ]
    facts = found["facts"]
    header = (
        f"{facts['images']} images of {facts['side']} px, {facts['objects']:,} objects, input {facts['tile'][0]} px"
    )
    return _table([header, "AP", "AP50", "boxes shown", "ms per image"], rows)


def _finetuning_files() -> list[dict[str, Any]]:
    """Reads the comparisons with effdet, one per dataset."""
    return [json.loads(path.read_text()) for path in sorted(_RESULTS.glob("finetuning-*.json"))]


def _finetuning() -> str:
    """Fine-tuning compared with effdet: one row per dataset."""
    rows = []
    for found in _finetuning_files():
        difference, settings = found["finetune_ap_minus_effdet"], found["settings"]
        if difference is None:
            continue
        data = found["dataset"]
        what = f"{settings['preset']}, {settings['image_size'][0]} px, {settings['steps']} steps"
        rows.append(
            [
                f"{data['name']}, {data['images']['train']} images; {what}",
                *(_mean(row["AP"]) for row in found["rows"][:2]),
                f"{difference:+.3f}",
                _range(found["ratios"]["finetune_images_per_second_vs_effdet"]),
            ]
        )
    if not rows:
        return "Not measured yet."
    header = ["fine-tuning from an ImageNet backbone", "AP", "AP of effdet (PyTorch)"]
    return _table([*header, "difference, goal 0.08", "ratio of images/s: median (range), goal 1.5"], rows)


def _finetuning_runs() -> str:
    """Each comparison in full, with the ablations that explain the difference."""
    tables = []
    for found in _finetuning_files():
        data, settings, hardware = found["dataset"], found["settings"], found["hardware"]
        test = settings["test"]
        rows = [
            [
                row["what"],
                str(len(row["seeds"])),
                _mean(row["AP"]),
                _mean(row["AP50"]),
                _range(row["images_per_second"]),
                f"{row['minutes']['median']:.1f}",
            ]
            for row in found["rows"]
        ]
        where = f"{hardware['cores']} cores of an {hardware['cpu']}"
        title = f"{data['name']}: {data['images'][test]} images of {test}; {where}"
        header = [title, "seeds", "AP", "AP50", "images/s: median (range)", "minutes"]
        tables.append(_table(header, rows))
    return "\n\n".join(tables) or "Not measured yet."


def _first_detector() -> str:
    """What the README's commands give on few images, in a sentence."""
    path = _RESULTS / "first-detector.json"
    if not path.is_file():
        return "Not measured yet."
    found = json.loads(path.read_text())
    metrics, intervals = found["test"]["metrics"], found["test"]["intervals"]
    low, high = intervals["AP50"]
    minutes = found["commands"]["train"]["minutes"]
    return (
        f"On {found['dataset']}, {found['training']['steps']:,} steps: {minutes:.0f} minutes on "
        f"{found['hardware']['cores']} cores of an {found['hardware']['cpu']}, no GPU; AP {metrics['AP']:.3f}, AP50 "
        f"{metrics['AP50']:.3f} ({low:.3f} to {high:.3f}) on {found['test']['num_images']} test images."
    )


def _mean(value: dict[str, Any]) -> str:
    """Writes a mean with its standard deviation, where there are several seeds."""
    deviation = value["standard_deviation"]
    return f"{value['mean']:.3f}" + ("" if deviation is None else f" ± {deviation:.3f}")


_TABLES: dict[str, Callable[[], str]] = {
    "ratios": _ratios,
    "input": _input,
    "training": _training,
    "inference": _inference,
    "roofline": _roofline,
    "gpu": _gpu,
    "growth": _growth,
    "exports of the demo": lambda: _exports("exports-demo.json"),
    "exports of D0": lambda: _exports("exports-d0.json"),
    "serving": _serving,
    "tiles": _tiles,
    "first detector": _first_detector,
    "finetuning": _finetuning,
    "finetuning runs": _finetuning_runs,
}


if __name__ == "__main__":
    tyro.cli(main)
