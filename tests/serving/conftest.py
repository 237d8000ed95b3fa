"""A tiny model that finds something, and a service that runs it in a process of its own."""

import keras
import little_service
import numpy as np
import pytest

from efficientdet.inference.detector import Detector
from efficientdet.model import weights
from efficientdet.model.efficientdet import EfficientDet
from efficientdet.structures import Category


@pytest.fixture(scope="session")
def weights_file(tiny, tmp_path_factory):
    """Random weights, large enough that every image has detections of its own."""
    keras.utils.set_random_seed(0)
    model = EfficientDet(tiny)
    rng = np.random.default_rng(0)
    arrays = {weights.variable_name(variable): variable.numpy() for variable in model.weights}
    for name, values in arrays.items():
        if "predict" in name and name.endswith("kernel"):
            arrays[name] = rng.normal(0, 10 if "class" in name else 3, values.shape).astype(np.float32)
    arrays["class_head/predict/pointwise/bias"] = np.full(27, -1.5, np.float32)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    categories = (Category(id=5, name="cat"), Category(id=9, name="dog"), Category(id=11, name="guinea pig"))
    weights.save(path, arrays, tiny, categories)
    return path


@pytest.fixture(scope="session")
def detector(weights_file):
    """The same model in the process of the tests."""
    return Detector(weights_file, score_threshold=0.0, runtime=little_service.RUNTIME)


@pytest.fixture(scope="session")
def service(weights_file, tmp_path_factory):
    """A service with limits that a test reaches soon."""
    with little_service.run(weights_file, tmp_path_factory.mktemp("service")) as running:
        yield running
