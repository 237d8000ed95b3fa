"""TensorFlow's SavedModel, as TensorFlow Serving and TensorFlow load it.

Signatures, all with the same answer:

    letterboxed      images uint8[B, H, W, 3], valid_size int32[B, 2]; boxes in px of the network input
    serving_default  the same; with the letterbox inside:
    serving_default  encoded string[B], JPEG, PNG, GIF or BMP files; boxes in px of each image, inside it
    images         images uint8[B, h, w, 3] of any size; likewise

TensorFlow's decoders do not turn an image as its EXIF orientation says; whoever sends photographs of telephones turns
them before.
"""

from pathlib import Path
from typing import Any

import numpy as np

from efficientdet.data import preprocess, synthetic
from efficientdet.model import tracing, weights
from efficientdet.runtimes import saved_model
from efficientdet.runtimes.manifest import Manifest

_POLICIES = {"float32": "float32", "float16": "mixed_float16", "bfloat16": "mixed_bfloat16"}


def write(folder: Path, loaded: weights.Weights, manifest: Manifest) -> None:
    """Writes a SavedModel.

    Args:
        folder: empty.
        loaded: the weights.
        manifest: what to write: precision (of the arithmetic; variables stay float32), answer, batch and size.
    """
    import tensorflow as tf

    network = tracing.build(loaded, manifest.model.image_size, _POLICIES[manifest.precision])
    letterboxed = tracing.trace(network, loaded, answer=manifest.answer, batch_size=manifest.batch_size)
    module = tf.Module()
    module.variables_of_network = [variable.value for variable in network.variables]
    signatures = {saved_model.SIGNATURE: letterboxed, "serving_default": letterboxed}
    if manifest.has_letterbox:
        signatures |= {"serving_default": _encoded(letterboxed, manifest), "pictures": _pictures(letterboxed, manifest)}
    tf.saved_model.save(module, folder, signatures=signatures)


def letterbox_difference(folder: Path, manifest: Manifest) -> tuple[float, float]:
    """Compares the signatures with the letterbox inside with the one without, on an image of another shape.

    Returns:
        Largest difference of a score, and of a side of a box in px of the image, of detections at the same place of
        the list.
    """
    import tensorflow as tf

    signatures = tf.saved_model.load(folder).signatures
    height, width = manifest.model.image_size
    picture, _, _ = synthetic.draw_picture(0, 0, (height + 31, width // 2 + 40))
    images, valid_size, scale = preprocess.letterbox(picture, (height, width), manifest.model.resize)
    count = manifest.batch_size or 1
    inputs = [tf.constant(array[None].repeat(count, axis=0)) for array in (images, np.array(valid_size, np.int32))]
    expected = signatures[saved_model.SIGNATURE](images=inputs[0], valid_size=inputs[1])
    boxes = preprocess.undo_letterbox(
        expected["boxes"].numpy(), np.array([scale], np.float32), np.array([picture.shape[:2]], np.int32)
    )
    encoded = tf.repeat(tf.io.encode_png(picture)[None], count, axis=0)
    answers = [
        signatures["serving_default"](encoded=encoded),
        signatures["pictures"](pictures=tf.repeat(picture[None], count, axis=0)),
    ]
    scores = max(float(np.abs(found["scores"] - expected["scores"]).max()) for found in answers)
    return scores, max(float(np.abs(found["boxes"] - boxes).max()) for found in answers)


def _encoded(letterboxed: Any, manifest: Manifest) -> Any:
    """Makes the signature that takes files of images."""
    import tensorflow as tf

    signature = [tf.TensorSpec([manifest.batch_size or None], tf.string, name="encoded")]

    @tf.function(input_signature=signature, autograph=False)
    def run(encoded: Any) -> dict[str, Any]:
        return _detect(letterboxed, manifest, encoded, preprocess.decode_tf)

    return run


def _pictures(letterboxed: Any, manifest: Manifest) -> Any:
    """Makes the signature that takes pixels."""
    import tensorflow as tf

    signature = [tf.TensorSpec([manifest.batch_size or None, None, None, 3], tf.uint8, name="pictures")]

    @tf.function(input_signature=signature, autograph=False)
    def run(pictures: Any) -> dict[str, Any]:
        return _detect(letterboxed, manifest, pictures, lambda picture: picture)

    return run


def _detect(letterboxed: Any, manifest: Manifest, batch: Any, decode: Any) -> dict[str, Any]:
    """Decodes and letterboxes one image after the other, detects in all, and moves the boxes back."""
    import tensorflow as tf

    image_size = manifest.model.image_size

    def prepare(one: Any) -> tuple[Any, ...]:
        picture = decode(one)
        size = tf.shape(picture)[:2]
        valid_size, scale = preprocess.fitted_size_tf(size, tf.constant(image_size))
        return preprocess.resample_tf(picture, valid_size, image_size, manifest.model.resize), valid_size, scale, size

    shapes = (
        tf.TensorSpec([*image_size, 3], tf.uint8),
        tf.TensorSpec([2], tf.int32),
        tf.TensorSpec([], tf.float32),
        tf.TensorSpec([2], tf.int32),
    )
    images, valid_size, scales, sizes = tf.map_fn(prepare, batch, fn_output_signature=shapes)
    found = letterboxed(images, valid_size)
    limits = tf.cast(tf.concat([sizes, sizes], axis=-1), tf.float32)[:, None]
    boxes = tf.clip_by_value(found["boxes"] / scales[:, None, None], 0.0, limits)
    return {**found, "boxes": boxes}
