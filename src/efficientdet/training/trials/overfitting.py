"""A test of data and labels: overfit the first few training images and evaluate on them (`overfit`).

If a detector cannot learn eight images, it cannot learn eight thousand: boxes are shifted, labels are mixed up, objects
are smaller than any anchor, or the learning rate is wrong. Everything that keeps a network from memorizing is off:
augmentation, stochastic depth, weight decay. The weights themselves are evaluated, since their average lags behind.
"""

import dataclasses

from efficientdet.config import AugmentationConfig, ExperimentConfig

_EVALUATIONS = 10
_RATE = 0.08


def adapt(config: ExperimentConfig) -> ExperimentConfig:
    """Adapts a configuration with `overfit` so that the network can memorize; returns any other unchanged.

    A batch contains each image at most once. Evaluations are at least a tenth of the run apart: an epoch is one step.
    Unless given, the learning rate is that of a batch of 64: smaller batches use smaller rates because their gradients
    are noisier, but a batch with all the images has no noise.
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
