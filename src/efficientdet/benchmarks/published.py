"""The speeds that NVIDIA published for EfficientDet-D0 in TensorFlow 2, to stand beside a measured one.

Its inference was timed with another suppression than the one its AP was measured with, and its "90 %" latency is the
mean of the fastest nine tenths; the average latency is what is given here.
"""

_TRAINING = {
    # (GPU, devices, precision) -> images a second
    ("A100", 1, "tf32"): 162.0,
    ("A100", 1, "mixed_float16"): 397.0,
    ("A100", 8, "tf32"): 1266.0,
    ("A100", 8, "mixed_float16"): 2711.0,
    ("V100", 1, "float32"): 113.0,
    ("V100", 1, "mixed_float16"): 232.0,
    ("V100", 8, "float32"): 645.0,
    ("V100", 8, "mixed_float16"): 777.0,
}
_INFERENCE = {
    # A100, float16: batch size -> images a second
    1: 38.0,
    2: 40.0,
    4: 80.0,
    8: 153.0,
    16: 276.0,
    32: 465.0,
    64: 706.0,
    128: 791.0,
    256: 858.0,
}


def training_rates(preset: str, precision: str, devices: int) -> dict[str, float]:
    """Finds NVIDIA's images a second for as many of its GPUs in the same precision: GPU -> rate; empty for others."""
    if not preset.startswith("d0"):
        return {}
    return {gpu: rate for (gpu, count, kind), rate in _TRAINING.items() if (count, kind) == (devices, precision)}


def inference_rates(preset: str, batch_size: int) -> dict[str, float]:
    """Finds NVIDIA's images a second at a batch size, on an A100 in float16: GPU -> rate; empty for others."""
    return {"A100": _INFERENCE[batch_size]} if preset.startswith("d0") and batch_size in _INFERENCE else {}
