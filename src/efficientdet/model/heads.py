"""Class head and box head: the same network on every level (EfficientDet, section 3.3; RetinaNet, section 4).

`head_repeats` times separable convolution - batch normalization - activation, then a separable convolution for the
prediction. All levels share the convolutions; each level has its own normalizations.
"""

import math
from typing import Any

import keras
from keras import ops

from efficientdet.config import ModelConfig
from efficientdet.model import anchors, layers, normalization
from efficientdet.structures import Array, Features

PRIOR_PROBABILITY = 0.01  # RetinaNet, section 4.1: score of every class of an untrained network


def class_bias() -> float:
    """Returns the logit of the prior probability, -4.595."""
    return -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY)


def class_head(config: ModelConfig, dtype: layers.Dtype = "float32") -> "Head":
    """Creates the class head of a model: `num_classes` logits per anchor."""
    return Head(
        config, anchors.anchors_per_cell(config), config.num_classes, class_bias(), name="class_head", dtype=dtype
    )


def box_head(config: ModelConfig, dtype: layers.Dtype = "float32") -> "Head":
    """Creates the box head of a model: 4 deltas per anchor."""
    return Head(config, anchors.anchors_per_cell(config), 4, 0.0, name="box_head", dtype=dtype)


class Head(keras.layers.Layer):
    """A head with `outputs` numbers per anchor.

    list of compute_dtype[B, h_l, w_l, D] -> float32[B, A, outputs]; anchors in the order of `anchors.anchor_boxes`.
    """

    def __init__(self, config: ModelConfig, anchors_per_cell: int, outputs: int, bias: float, **kwargs: Any):
        """Creates the layers; `bias` is the initial bias of the prediction."""
        super().__init__(**kwargs)
        self.outputs, self.channels = outputs, config.feature_channels
        levels = range(config.min_level, config.max_level + 1)
        self.convs = [self._conv(self.channels, 0.0, f"conv_{i}") for i in range(config.head_repeats)]
        self.norms = [
            [
                normalization.batch_norm(
                    f"norm_{i}_p{level}", config.batch_norm_momentum, self.dtype_policy, config.activation
                )
                for level in levels
            ]
            for i in range(config.head_repeats)
        ]
        self.predict = self._conv(anchors_per_cell * outputs, bias, "predict")

    def _conv(self, filters: int, bias: float, name: str) -> layers.SeparableConv:
        return layers.SeparableConv(
            filters,
            depthwise_initializer=keras.initializers.VarianceScaling(),
            pointwise_initializer=keras.initializers.VarianceScaling(),
            bias_initializer=keras.initializers.Constant(bias),
            name=name,
            dtype=self.dtype_policy,
        )

    def build(self, input_shape: Any) -> None:
        """Creates the variables; they depend only on channels, not on sizes."""
        shape = (None, None, None, self.channels)
        for conv, norms in zip(self.convs, self.norms, strict=True):
            conv.build(shape)
            for norm in norms:
                norm.build(shape)
        self.predict.build(shape)

    def call(self, features: list[Features], training: bool = False) -> Array:
        """Predicts for every anchor of every level."""
        predictions = []
        for level, x in enumerate(features):
            for conv, norms in zip(self.convs, self.norms, strict=True):
                x = norms[level](conv(x), training=training)
            height, width = x.shape[1:3]
            # float32 from here on in every precision. A Keras layer would cast back; an operation does not.
            logits = ops.cast(self.predict(x), "float32")
            per_cell = self.predict.pointwise.filters // self.outputs
            predictions.append(ops.reshape(logits, (-1, height * width * per_cell, self.outputs)))
        return ops.concatenate(predictions, axis=1)
