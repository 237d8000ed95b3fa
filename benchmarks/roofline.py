"""How fast could a GPU run EfficientDet? What its memory and its arithmetic allow, computed, not measured.

A forward pass of one image reads and writes each feature map at least once around each convolution; a training step
does so about three times (forward, gradient of the inputs, gradient of the kernels), and reads and writes weights,
momenta and averages once a step. Divided by a GPU's published bandwidth that is the most images a second; its
published arithmetic gives another limit, and the lower one counts. Writes both as JSON.

    python benchmarks/roofline.py --output benchmarks/results/roofline-d0.json
"""

from pathlib import Path
from typing import Any

import tyro

from efficientdet import backend, presets
from efficientdet.benchmarks import report
from efficientdet.storage import files

_GPUS = {
    # GB/s and dense TFLOP/s in 16 bits, from the makers' data sheets
    "V100 SXM2": (900, 125),
    "A100 80 GB SXM": (2039, 312),
    "H100 SXM": (3350, 989),
    "H200 SXM": (4800, 989),
}
_BYTES = 2
_TRAINING = 3  # passes in units of the forward pass


def main(*, output: Path, preset: str = "d0") -> None:
    """Computes the limits and writes them.

    Args:
        output: JSON file to write.
        preset: model.
    """
    backend.choose()
    from efficientdet.model import complexity
    from efficientdet.model.efficientdet import EfficientDet

    config = presets.find_preset(preset).model
    model = EfficientDet(config)
    traffic = _BYTES * complexity.count_traffic(model, config.image_size)
    work = 2 * complexity.count_multiply_adds(model, config.image_size).convolutions
    rows: list[dict[str, Any]] = []
    for name, (bandwidth, arithmetic) in _GPUS.items():
        by_memory, by_arithmetic = bandwidth * 1e9 / traffic, arithmetic * 1e12 / work
        inference = min(by_memory, by_arithmetic)
        rows.append(
            {
                "gpu": name,
                "gigabytes_per_second": bandwidth,
                "teraflops": arithmetic,
                "inference_by_memory": round(by_memory),
                "inference_by_arithmetic": round(by_arithmetic),
                "inference": round(inference),
                "training": round(inference / _TRAINING),
            }
        )
    table = {
        "what": f"images a second that memory and arithmetic allow {preset} in 16 bits at most; computed",
        "megabytes_per_image": round(traffic / 1e6, 1),
        "gigaflops_per_image": round(work / 1e9, 2),
        "rows": rows,
        **report.circumstances(),
    }
    files.write_json(output, table)
    for row in rows:
        print(f"{row['gpu']}: inference {row['inference']}, training {row['training']} images/s at most")


if __name__ == "__main__":
    tyro.cli(main)
