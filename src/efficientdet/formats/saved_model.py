"""TensorFlow's SavedModel, for TensorFlow and TensorFlow Serving: a program, not just a table of numbers.

Signatures, all with the same outputs:

    letterboxed      images uint8[B, H, W, 3], valid_size int32[B, 2]; boxes in px of the network input
    serving_default  the same, or with the letterbox included:
    serving_default  encoded string[B], JPEG, PNG, GIF or BMP files; boxes in px of each image, inside it
    images           images uint8[B, h, w, 3] of any size; boxes likewise

TensorFlow's decoders ignore the EXIF orientation; rotate photographs from phones before sending them.

TensorFlow operations can read and write files, and a SavedModel may use any of them. So a SavedModel is checked before
it is loaded: every operation must be one that our exports use, and the object graph may hold only variables, constants
and functions. Every SavedModel has operations that save and restore variables; they are allowed only in the two
functions made for them, which nothing here calls. TensorFlow Serving has no such checks: give it only models you trust.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from efficientdet import backend
from efficientdet.data import preprocess, synthetic
from efficientdet.errors import UserError
from efficientdet.formats.manifest import OUTPUTS, Manifest, Program, check_outputs

if TYPE_CHECKING:
    from efficientdet.model import weights

_POLICIES = {"float32": "float32", "float16": "mixed_float16", "bfloat16": "mixed_bfloat16"}
SIGNATURE = "letterboxed"

# Pure functions of their inputs, except ReadVariableOp. A new version of TensorFlow or of the network may need more.
_OPERATIONS_OF_OURS = """
    Add AddV2 Any BiasAdd Bitcast BroadcastTo Cast ConcatV2 Const Conv2D DecodeImage DecodeJpeg DepthwiseConv2dNative
    EnsureShape Equal Exp ExpandDims Fill FloorDiv FloorMod GatherV2 Greater Identity IdentityN Less LogicalAnd Max
    MaxPool Maximum Mean Min Minimum Mul Neg NoOp Pack PartitionedCall Placeholder Prod QuantizeV2 Range ReadVariableOp
    RealDiv Relu Relu6 Reshape ResizeBilinear ScaleAndTranslate Select SelectV2 Shape Sigmoid Size Slice Softmax Sqrt
    Square Squeeze StatefulPartitionedCall StatelessIf StatelessWhile StridedSlice Sub Substr Sum TensorListFromTensor
    TensorListGetItem TensorListReserve TensorListSetItem TensorListStack Tile TopKV2 Transpose Unpack VarHandleOp While
    ZerosLike
"""
_OPERATIONS_OF_SAVERS = """
    AssignVariableOp DisableCopyOnRead MergeV2Checkpoints RestoreV2 SaveV2 ShardedFilename StaticRegexFullMatch
    StringJoin
"""
_SAVERS = ("__inference__traced_save", "__inference__traced_restore")
_OBJECTS = ("user_object", "function", "bare_concrete_function", "variable", "constant", "captured_tensor")
_LARGEST = 2 * 10**9  # bytes of the program; protobuf's limit


def write(folder: Path, loaded: weights.Weights, manifest: Manifest) -> None:
    """Writes a SavedModel.

    Args:
        folder: an empty folder.
        loaded: the weights.
        manifest: what to write: precision (of the arithmetic; variables stay float32), answer, batch and size.
    """
    import tensorflow as tf

    from efficientdet.formats import tracing

    network = tracing.build(loaded, manifest.model.image_size, _POLICIES[manifest.precision])
    letterboxed = tracing.trace(network, loaded, answer=manifest.answer, batch_size=manifest.batch_size)
    module = tf.Module()
    module.variables_of_network = [variable.value for variable in network.variables]
    signatures = {SIGNATURE: letterboxed, "serving_default": letterboxed}
    if manifest.has_letterbox:
        signatures |= {"serving_default": _encoded(letterboxed, manifest), "images": _images(letterboxed, manifest)}
    tf.saved_model.save(module, folder, signatures=signatures)


def letterbox_difference(folder: Path, manifest: Manifest) -> tuple[float, float]:
    """Compares the signatures that include the letterbox with the one that doesn't, on an image of another shape.

    Returns:
        Largest difference in score, and in a side of a box in px of the image, between detections at the same position
        in the list.
    """
    import tensorflow as tf

    signatures = tf.saved_model.load(folder).signatures
    if "images" not in signatures:
        raise UserError(
            f"`{folder}` has no signature `images`, as in exports from earlier versions; export the weights again."
        )
    height, width = manifest.model.image_size
    image, _, _ = synthetic.draw_image(0, 0, (height + 31, width // 2 + 40))
    images, valid_size, scale = preprocess.letterbox(image, (height, width), manifest.model.resize)
    count = manifest.batch_size or 1
    inputs = [tf.constant(array[None].repeat(count, axis=0)) for array in (images, np.array(valid_size, np.int32))]
    expected = signatures[SIGNATURE](images=inputs[0], valid_size=inputs[1])
    boxes = preprocess.undo_letterbox(
        expected["boxes"].numpy(), np.array([scale], np.float32), np.array([image.shape[:2]], np.int32)
    )
    encoded = tf.repeat(tf.io.encode_png(image)[None], count, axis=0)
    answers = [
        signatures["serving_default"](encoded=encoded),
        signatures["images"](images=tf.repeat(image[None], count, axis=0)),
    ]
    scores = max(float(np.abs(found["scores"] - expected["scores"]).max()) for found in answers)
    return scores, max(float(np.abs(found["boxes"] - boxes).max()) for found in answers)


def _encoded(letterboxed: Any, manifest: Manifest) -> Any:
    """Makes the signature that takes image files."""
    import tensorflow as tf

    signature = [tf.TensorSpec([manifest.batch_size or None], tf.string, name="encoded")]

    @tf.function(input_signature=signature, autograph=False)
    def run(encoded: Any) -> dict[str, Any]:
        return _detect(letterboxed, manifest, encoded, preprocess.decode_tf)

    return run


def _images(letterboxed: Any, manifest: Manifest) -> Any:
    """Makes the signature that takes pixels."""
    import tensorflow as tf

    signature = [tf.TensorSpec([manifest.batch_size or None, None, None, 3], tf.uint8, name="images")]

    @tf.function(input_signature=signature, autograph=False)
    def run(images: Any) -> dict[str, Any]:
        return _detect(letterboxed, manifest, images, lambda image: image)

    return run


def _detect(letterboxed: Any, manifest: Manifest, batch: Any, decode: Any) -> dict[str, Any]:
    """Decodes and letterboxes the images one by one, detects in all of them, and maps the boxes back."""
    import tensorflow as tf

    image_size = manifest.model.image_size

    def prepare(one: Any) -> tuple[Any, ...]:
        image = decode(one)
        size = tf.shape(image)[:2]
        valid_size, scale = preprocess.fitted_size_tf(size, tf.constant(image_size))
        return preprocess.resample_tf(image, valid_size, image_size, manifest.model.resize), valid_size, scale, size

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


def open_program(folder: Path, manifest: Manifest) -> Program:
    """Opens a SavedModel.

    Args:
        folder: folder with saved_model.pb.
        manifest: manifest that the SavedModel must match.

    Raises:
        UserError: TensorFlow is not installed, or the SavedModel is not valid, unsafe, or doesn't match the manifest.
    """
    backend.require_tensorflow("A SavedModel")
    path = folder / "saved_model.pb"
    _check(path)
    import tensorflow as tf

    try:
        loaded = tf.saved_model.load(folder)
        function = loaded.signatures[SIGNATURE]
    except Exception as error:  # a damaged graph can raise anything
        raise UserError(f"`{folder}` cannot be loaded by TensorFlow: {' '.join(str(error).split())}.") from error
    inputs = function.structured_input_signature[1]
    check_outputs(path, manifest, [*inputs, *function.structured_outputs])
    names = OUTPUTS[manifest.answer]

    def run(images: np.ndarray, valid_size: np.ndarray) -> dict[str, np.ndarray]:
        # The loaded object owns the variables; the function alone would not keep them alive.
        found = loaded.signatures[SIGNATURE](images=tf.constant(images), valid_size=tf.constant(valid_size))
        return {name: found[name].numpy() for name in names}

    return run


def _check(path: Path) -> None:
    """Raises a UserError for a SavedModel that could do more than compute."""
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    if path.stat().st_size > _LARGEST:
        raise UserError(f"`{path}` has more than {_LARGEST:,} bytes; it was not exported by this program.")
    program = saved_model_pb2.SavedModel()
    try:
        program.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise UserError(f"`{path}` is not a SavedModel: {error}.") from error
    if len(program.meta_graphs) != 1 or not program.meta_graphs[0].object_graph_def.nodes:
        raise UserError(
            f"`{path}` was not exported by this program: expected a TensorFlow 2 SavedModel with one graph."
        )
    graph = program.meta_graphs[0]
    allowed = frozenset(_OPERATIONS_OF_OURS.split())
    with_saving = allowed | frozenset(_OPERATIONS_OF_SAVERS.split())
    for node in graph.object_graph_def.nodes:
        if (kind := node.WhichOneof("kind")) not in _OBJECTS:
            raise UserError(f"`{path}` has an object of kind `{kind}`, which is not allowed.")
    for function in graph.graph_def.library.function:
        is_saver = function.signature.name.startswith(_SAVERS)
        _check_operations(path, function.node_def, with_saving if is_saver else allowed)
    # TensorFlow doesn't run the outer graph here, which calls the savers.
    _check_operations(path, graph.graph_def.node, with_saving, may_save=True)


def _check_operations(path: Path, nodes: Iterable[Any], allowed: frozenset[str], *, may_save: bool = False) -> None:
    """Raises a UserError for an operation that is not allowed, or a call of a function that saves."""
    for node in nodes:
        if node.op not in allowed:
            raise UserError(f"`{path}` has the operation `{node.op}`, which is not allowed in an export.")
        called = [node.attr[name].func.name for name in node.attr if node.attr[name].HasField("func")]
        if not may_save and any(name.startswith(_SAVERS) for name in called):
            raise UserError(f"`{path}` would write files when it is called, which is not allowed.")
