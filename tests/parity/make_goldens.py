"""Makes tests/golden/*.npz: what effdet computes, for tests that run without PyTorch (tests/model/test_golden.py).

    python tests/parity/make_goldens.py

in the environment of `make parity`. A file holds only what random_weights.py cannot make again:

    statistics/<name>  float32, means and variances of batch normalisation
    outputs/<name>     float32, effdet's float64 values rounded; [1, D, h, w]
    noise/<name>       float32, largest difference of effdet's float32 from its float64
    tensors            JSON, every tensor of effdet's state dictionary -> its shape, in PyTorch's layout
    made               JSON: command, model, image size, seed, versions
"""

import importlib.metadata
import json
import pathlib

import numpy as np
import random_weights
import reference

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
_MODELS = ("d0", "lite0")
_IMAGE_SIZE = (128, 128)
_SEED = 0


def main():
    """Makes the files."""
    GOLDEN.mkdir(exist_ok=True)
    for model in _MODELS:
        made = reference.make_reference(f"tf_efficientdet_{model}", _IMAGE_SIZE, _SEED)
        path = GOLDEN / f"{model}.npz"
        np.savez_compressed(path, **golden_arrays(made))
        print(f"{path.relative_to(GOLDEN.parents[1])}: {path.stat().st_size / 1e6:.2f} MB")


def golden_arrays(made):
    """Picks the arrays of a golden file from a reference."""
    state = {name: tensor.numpy() for name, tensor in made.state.items()}
    arrays = {f"statistics/{name}": state[name] for name in state if random_weights.is_statistic(name)}
    arrays |= {f"outputs/{name}": array.astype(np.float32) for name, array in made.outputs.items()}
    arrays |= {f"noise/{name}": np.float32(value) for name, value in made.noise.items()}
    how = {
        "command": "python tests/parity/make_goldens.py",
        "model": made.model,
        "image_size": list(_IMAGE_SIZE),
        "seed": _SEED,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "effdet", "timm", "numpy")},
    }
    shapes = {name: array.shape for name, array in state.items()}
    return {**arrays, "tensors": np.array(json.dumps(shapes)), "made": np.array(json.dumps(how))}


if __name__ == "__main__":
    main()
