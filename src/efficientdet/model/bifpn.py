"""The feature network: weighted bidirectional feature pyramid (EfficientDet, section 3, figure 3).

A cell goes from the coarsest level down to the finest and back up. A node fuses features of its level with the node
built before it, followed by activation, separable convolution and batch normalization.
"""

from typing import Any

import keras

from efficientdet.config import ModelConfig
from efficientdet.model import architecture, layers, normalization
from efficientdet.structures import Features


class Node(keras.layers.Layer):
    """One node: resample the inputs, fuse, activate, convolve, normalize.

    list of compute_dtype[B, h_i, w_i, D_i] -> compute_dtype[B, h, w, D]
    """

    def __init__(self, config: ModelConfig, num_inputs: int, **kwargs: Any):
        """Creates the layers."""
        super().__init__(**kwargs)
        dtype, momentum = self.dtype_policy, config.batch_norm_momentum
        self.filters = config.feature_channels
        # An input with a different number of channels gets its own projection, even if another node uses it too.
        self.resamples = [
            layers.Resample(
                self.filters, momentum=momentum, upsampling=config.upsampling, name=f"resample_{i}", dtype=dtype
            )
            for i in range(num_inputs)
        ]
        self.fusion = layers.Fusion(
            config.fusion, relu=config.fusion_relu, activation=config.activation, name="fusion", dtype=dtype
        )
        self.conv = layers.SeparableConv(self.filters, name="conv", dtype=dtype)
        self.norm = normalization.batch_norm("norm", momentum, dtype)

    def build(self, input_shape: list[Any]) -> None:
        """Creates the variables."""
        for resample, shape in zip(self.resamples, input_shape, strict=True):
            resample.build(shape)
        shape = (*input_shape[0][:-1], self.filters)
        self.fusion.build([shape] * len(input_shape))
        self.conv.build(shape)
        self.norm.build(shape)

    def call(self, inputs: list[Features], *, target_size: tuple[int, int], training: bool = False) -> Features:
        """Computes features of `target_size` = (height, width)."""
        resampled = [
            resample(x, target_size=target_size, training=training)
            for resample, x in zip(self.resamples, inputs, strict=True)
        ]
        x = self.fusion(resampled, training=training)
        return self.norm(self.conv(x), training=training)


class BiFPN(keras.layers.Layer):
    """Turns features P3..P5 of the backbone into P3..P7 (or P3..P5, P6, P8), fused in `num_cells` cells.

    P6 is P5 projected, normalized and max-pooled; P7 and P8 are pooled again (EfficientDet, section 3.2).

    list of compute_dtype[B, h_l, w_l, D_l] -> list of compute_dtype[B, h_l, w_l, feature_channels]
    """

    def __init__(self, config: ModelConfig, **kwargs: Any):
        """Creates the cells."""
        super().__init__(**kwargs)
        self.config = config
        self.nodes = architecture.node_inputs(config.min_level, config.max_level)
        self.coarser = [
            layers.Resample(
                config.feature_channels,
                momentum=config.batch_norm_momentum,
                name=f"resample_p{level}",
                dtype=self.dtype_policy,
            )
            for level in range(6, config.max_level + 1)
        ]
        self.cells = [
            [
                Node(config, len(inputs), name=f"cell_{cell}_node_{number}", dtype=self.dtype_policy)
                for number, (_, inputs) in enumerate(self.nodes)
            ]
            for cell in range(config.num_cells)
        ]

    def build(self, input_shape: list[Any]) -> None:
        """Creates the variables; they depend only on channels, not on sizes."""
        channels = self.config.feature_channels
        shapes = list(input_shape)
        for resample in self.coarser:
            resample.build(shapes[-1])
            shapes.append((*input_shape[0][:-1], channels))
        for cell in self.cells:
            features = list(shapes)
            for node, (_, inputs) in zip(cell, self.nodes, strict=True):
                node.build([features[i] for i in inputs])
                features.append((*input_shape[0][:-1], channels))
            shapes = [(*input_shape[0][:-1], channels)] * len(shapes)

    def call(self, inputs: list[Features], training: bool = False) -> list[Features]:
        """Computes the fused feature pyramid."""
        features = list(inputs)
        for resample in self.coarser:
            height, width = features[-1].shape[1:3]
            size = ((height - 1) // 2 + 1, (width - 1) // 2 + 1)
            features.append(resample(features[-1], target_size=size, training=training))
        sizes = [tuple(x.shape[1:3]) for x in features]
        min_level = self.config.min_level
        for cell in self.cells:
            latest = {level + min_level: x for level, x in enumerate(features)}
            built = list(features)
            for node, (level, ids) in zip(cell, self.nodes, strict=True):
                size = sizes[level - min_level]
                latest[level] = node([built[i] for i in ids], target_size=size, training=training)
                built.append(latest[level])
            features = [latest[level + min_level] for level in range(len(features))]
        return features
