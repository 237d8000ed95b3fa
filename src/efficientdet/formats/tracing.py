"""The network as a TensorFlow function with its weights, the starting point of all converters."""

import dataclasses
from typing import Any

from efficientdet import backend
from efficientdet import config as configs
from efficientdet.config import Answer
from efficientdet.errors import UserError
from efficientdet.kernels import choice
from efficientdet.model import anchors, postprocess, weights
from efficientdet.model.efficientdet import EfficientDet


def build(loaded: weights.Weights, image_size: tuple[int, int] | None = None, precision: str = "float32") -> Any:
    """Builds the network of weights, optionally for another size.

    Args:
        loaded: the weights.
        image_size: height and width of the network input, px; None means what the weights were trained with.
        precision: Keras dtype policy of the network's arithmetic.

    Returns:
        EfficientDet; its config has the new size.

    Raises:
        UserError: the Keras backend is not TensorFlow, or the size is not valid.
    """
    if backend.running() != "tensorflow":
        raise UserError("Converting weights needs the TensorFlow backend; use `--backend tensorflow`.")
    config = dataclasses.replace(loaded.model, image_size=image_size or loaded.model.image_size)
    configs.check_image_size(config, "image_size")
    network = EfficientDet(config, precision=precision, kernels=choice.portable())
    weights.assign(network, loaded)
    return network


def trace(network: Any, loaded: weights.Weights, *, answer: Answer, batch_size: int = 0) -> Any:
    """Makes the TensorFlow function from letterboxed images to the answer.

    Args:
        network: a network from `build`.
        loaded: the weights it was built from.
        answer: raw: the predictions of each anchor and its best logit; detections: after the suppression.
        batch_size: images per call; 0 means any number.

    Returns:
        tf.function with one signature: images uint8[B, H, W, 3], valid_size int32[B, 2] -> dict, either
        class_logits float32[B, A, C], box_deltas float32[B, A, 4] and best_logits float32[B, A], or `Detections`.
    """
    import tensorflow as tf
    from keras import ops

    boxes = anchors.anchor_boxes(network.config)
    signature = [
        tf.TensorSpec([batch_size or None, *network.config.image_size, 3], tf.uint8, name="images"),
        tf.TensorSpec([batch_size or None, 2], tf.int32, name="valid_size"),
    ]

    @tf.function(input_signature=signature, autograph=False)
    def run(images: Any, valid_size: Any) -> dict[str, Any]:
        raw = network({"images": images, "valid_size": valid_size}, training=False)
        if answer == "detections":
            return dict(postprocess.detect(raw, boxes, loaded.postprocess))
        return {**raw, "best_logits": ops.max(raw["class_logits"], axis=-1)}

    return run
