"""Our network computes what PyTorch's effdet computes, held to files that tests/parity/make_goldens.py made.

The weights are made again from names and shapes, given effdet's names, and imported as a user would import a published
file. So one test covers the name map, every layout, padding, constant and connection. What agrees is in
tests/parity/agreement.py.
"""

import dataclasses
import json
import pathlib

import agreement
import numpy as np
import ours
import pytest
import random_weights
from safetensors.numpy import save_file

from efficientdet.model import weights

pytestmark = [pytest.mark.parity, pytest.mark.slow]

_GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
_OUTPUTS = [f"{kind}_{level}" for kind in ("class", "box") for level in range(3, 8)]


@dataclasses.dataclass(frozen=True, eq=False)
class _Golden:
    """A golden file, and its weights after the import."""

    arrays: dict
    how: dict
    imported: weights.Weights

    def rows(self, imported, *precisions):
        """Compares a network of ours with effdet's, by output; precisions: float32, and float64 or nothing."""
        image = random_weights.draw_images("image", 1, self.how["image_size"], self.how["seed"])
        single, double = [*(ours.predict(imported, image, precision) for precision in precisions), None][:2]
        rows = agreement.compare_outputs(single, double, self.part("outputs/"), self.part("noise/"))
        return {row.output: row for row in rows}

    def part(self, prefix):
        """Returns the arrays whose names begin with `prefix`, without it."""
        return {name.removeprefix(prefix): array for name, array in self.arrays.items() if name.startswith(prefix)}


def _state(golden):
    """Makes effdet's state dictionary: statistics from the file, everything else again."""
    seed, state = json.loads(str(golden["made"]))["seed"], {}
    for name, shape in json.loads(str(golden["tensors"])).items():
        if random_weights.is_counter(name):
            state[name] = np.zeros(shape, np.int64)
        elif random_weights.is_statistic(name):
            state[name] = golden[f"statistics/{name}"]
        else:
            state[name] = random_weights.draw_tensor(name, tuple(shape), seed)
    return state


@pytest.fixture(scope="module", params=["d0", "lite0"])
def golden(request, tmp_path_factory):
    """A golden file, and its weights after the import."""
    with np.load(_GOLDEN / f"{request.param}.npz") as file:
        arrays = dict(file)
    how = json.loads(str(arrays["made"]))
    folder = tmp_path_factory.mktemp(request.param)
    save_file(_state(arrays), folder / f"{how['model']}.safetensors")
    imported = ours.import_file(folder / f"{how['model']}.safetensors", folder / "imported.safetensors")
    return _Golden(arrays, how, imported)


@pytest.fixture(scope="module")
def rows(golden):
    """How far each output is from effdet's."""
    return golden.rows(golden.imported, "float32", "float64")


def test_every_level_of_both_heads_is_compared(rows):
    assert list(rows) == _OUTPUTS


@pytest.mark.parametrize("output", _OUTPUTS)
def test_in_float64_both_are_the_same_function(rows, output):
    row = rows[output]
    assert row.exact <= agreement.EXACT * row.largest


@pytest.mark.parametrize("output", _OUTPUTS)
def test_in_float32_ours_rounds_not_much_more_than_effdet_s(rows, output):
    assert rows[output].ratio <= agreement.LIMIT


def test_a_slightly_different_network_is_seen(golden):
    model = golden.imported.model
    # NVIDIA's network differs in nothing but the ReLU of the fusion; a Lite network has none, but could have swish.
    other = {"fusion_relu": False} if model.fusion == "fast_attention" else {"activation": "swish"}
    wrong = dataclasses.replace(golden.imported, model=dataclasses.replace(model, **other))
    rows = golden.rows(wrong, "float32")
    assert min(row.ratio for row in rows.values()) > 10 * agreement.LIMIT


def test_the_file_says_how_it_was_made(golden):
    assert golden.how["command"] == "python tests/parity/make_goldens.py"
    assert {"torch", "effdet", "timm", "numpy"} <= set(golden.how["versions"])
