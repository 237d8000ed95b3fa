"""A test of data and labels: the first few training images, memorized and evaluated on (`overfit`).

A detector that cannot learn eight images cannot learn eight thousand: boxes are shifted, labels are mixed up, objects
are smaller than any anchor, or the learning rate is wrong. So all that keeps a network from memorizing is off:
augmentation, stochastic depth, weight decay. Evaluated are the weights themselves, since their average lags behind.
"""

import dataclasses

from efficientdet.config import AugmentationConfig, ExperimentConfig

_EVALUATIONS = 10
_RATE = 0.08


def adapt(config: ExperimentConfig) -> ExperimentConfig:
    """Changes a configuration with `overfit` so that the network can memorize; leaves any other as it is.

    A batch holds each image once at most. Evaluations are a tenth of the run apart, or further: an epoch is one step.
    The learning rate, unless it is given, is that of a batch of 64: smaller batches have smaller ones since their
    gradients are noisier, but a batch of all images there are has no noise.
    """
    if not config.overfit:
        return config
    training, backbone = config.training, config.model.backbone
    rate = _RATE if config.optimizer.learning_rate is None else config.optimizer.learning_rate
    is_evaluated = training.evaluate_every > 0
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, backbone=dataclasses.replace(backbone, survival=1.0)),
        augmentation=AugmentationConfig(horizontal_flip=False, scale_min=1.0, scale_max=1.0),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=rate, weight_decay=0.0, average_decay=0.0),
        training=dataclasses.replace(
            training,
            batch_size=min(training.batch_size, config.overfit),
            evaluate_every=max(training.evaluate_every, training.epochs / _EVALUATIONS) if is_evaluated else 0.0,
        ),
    )
