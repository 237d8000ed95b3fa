"""A training on which images exploded before the second half of a run was trained with fixed statistics."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from efficientdet import presets
from efficientdet.config import BackboneConfig, DataConfig, ExperimentConfig, OptimizerConfig, TrainingConfig
from efficientdet.data import synthetic
from efficientdet.model import weights
from efficientdet.model.efficientdet import EfficientDet
from efficientdet.training.run import train

_SIZE = (64, 64)


def _largest_logits(folder, fixed_statistics):
    """Trains from random weights in batches of two; the largest class logit of training and of other images."""
    model = dataclasses.replace(
        presets.find_preset("demo").model,
        image_size=_SIZE,
        feature_channels=8,
        backbone=BackboneConfig(name="efficientnet-small", width=0.25, depth=0.25),
        head_repeats=1,
        batch_norm_momentum=0.9,
    )
    training = TrainingConfig(
        batch_size=2, epochs=100 * 2 / 64, evaluate_every=0, recalibrate_images=64, fixed_statistics=fixed_statistics
    )
    config = ExperimentConfig(
        run_dir=str(folder),
        model=model,
        data=DataConfig(train="synthetic", synthetic_examples=64, synthetic_classes=2, validation="none"),
        optimizer=OptimizerConfig(method="sgd", learning_rate=0.05),
        training=training,
    )
    train(config)
    loaded = weights.load(Path(folder) / "weights" / "last.safetensors")
    network = EfficientDet(loaded.model)
    weights.assign(network, loaded)
    largest = []
    for seed, count in ((0, 64), (1, 128)):
        images = np.stack([synthetic.draw_image(seed, index, _SIZE, 2)[0] for index in range(count)])
        largest.append(float(np.asarray(network({"images": images})["class_logits"]).max()))
    return largest


@pytest.mark.slow
def test_no_image_explodes_where_some_did(tmp_path):
    """Without the cure the largest logit is 8 to 50 on seed 0, 6.5 and 9.2 on two others; with it 0.6 at most.

    A training that explodes is chaotic: how far it gets differs between processors, and from run to run.
    """
    training, other = _largest_logits(tmp_path / "fixed", None)
    assert other < training + 3
    assert max(training, other) < 3
    assert max(_largest_logits(tmp_path / "moving", 0.0)) > 5, "this training no longer shows what the test is for"
