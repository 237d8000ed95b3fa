"""Random weights of a preset whose predictions vary over the image like those of trained weights."""

import contextlib
import dataclasses
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet import backend, presets
from efficientdet.config import ModelConfig
from efficientdet.data import synthetic
from efficientdet.structures import Category


@contextlib.contextmanager
def weights_of(model: str) -> Iterator[str | Path]:
    """Yields a location of weights; for a preset, a temporary file with random weights."""
    if model not in presets.MODELS:
        yield model
        return
    from efficientdet.model import weights

    config = presets.MODELS[model]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{model}{weights.SUFFIX}"
        arrays = random_weights(config)
        categories = [Category(id=number + 1, name=str(number + 1)) for number in range(config.num_classes)]
        weights.save(path, arrays, config, categories)
        yield path


def random_weights(config: ModelConfig) -> dict[str, np.ndarray]:
    """Draws weights whose predictions vary over the image, as needed to test suppression.

    The batch normalization gets the statistics of four images. Otherwise all activations would fade and all logits be
    the same.
    """
    from efficientdet.model import weights
    from efficientdet.model.efficientdet import EfficientDet

    random.seed(0)  # Keras draws its seeds from `random`; its own `set_random_seed` would import TensorFlow even on JAX
    network = EfficientDet(dataclasses.replace(config, batch_norm_momentum=0.0))
    drawn = [synthetic.draw_image(0, number, config.image_size)[0] for number in range(4)]
    trainable, statistics = network.trainable_variables, network.non_trainable_variables

    def normalize(images: Any) -> Any:
        values = [variable.value for variable in trainable], [variable.value for variable in statistics]
        return network.stateless_call(*values, {"images": images}, training=True)[1]

    for variable, value in zip(statistics, backend.compile_function(normalize)(np.stack(drawn)), strict=True):
        variable.assign(value)
    return {weights.variable_name(variable): variable.numpy() for variable in network.weights}
