"""Our side of the comparison: weights imported as a user would, and our network on an image that is normalised."""

import dataclasses

import numpy as np

from efficientdet import backend
from efficientdet.checkpoints import importing
from efficientdet.model import weights


def import_file(file, target):
    """Imports a file of effdet's weights into a weights file of ours and reads that.

    Args:
        file: what effdet or its user wrote.
        target: the weights file to write.

    Returns:
        `efficientdet.model.weights.Weights`.
    """
    importing.import_weights(file, output=target)
    return weights.load(target)


def predict(imported, image, precision):
    """Runs our network.

    Args:
        imported: weights.
        image: float32[1, 3, H, W], already normalised.
        precision: float32 or float64.

    Returns:
        RawPredictions as NumPy arrays, float32.
    """
    from keras import ops

    from efficientdet.model.efficientdet import EfficientDet

    # (x - 255 * 0) / (255 / 255) is x: the image passes the first layer as it is.
    unchanged = dataclasses.replace(imported.model, pixel_mean=(0.0,) * 3, pixel_std=(1 / 255,) * 3)
    model = EfficientDet(unchanged, precision=precision)
    weights.assign(model, imported)
    trainable = [variable.value for variable in model.trainable_variables]
    fixed = [variable.value for variable in model.non_trainable_variables]
    run = backend.compile_function(lambda *state_and_inputs: model.stateless_call(*state_and_inputs)[0])
    inputs = {"images": ops.convert_to_tensor(np.ascontiguousarray(image.transpose(0, 2, 3, 1)))}
    return {name: ops.convert_to_numpy(values) for name, values in run(trainable, fixed, inputs).items()}
