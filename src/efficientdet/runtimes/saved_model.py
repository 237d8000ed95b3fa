"""TensorFlow's SavedModel: a program, not a table of numbers.

Operations of TensorFlow read and write files, and a SavedModel may use any of them. What comes from elsewhere is
therefore read before it is loaded: every operation must be one that an export of ours consists of, and the object graph
may only hold variables, constants and functions. Operations that save and restore variables are in every SavedModel;
they are allowed in the two functions made for it, which nothing here calls, and nowhere else. TensorFlow Serving does
no such thing: give it only what you trust.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet import backend
from efficientdet.errors import UserError
from efficientdet.runtimes import exported
from efficientdet.runtimes.manifest import OUTPUTS, Manifest

SIGNATURE = "letterboxed"

# Pure functions of their inputs, but for ReadVariableOp. A new version of TensorFlow or of the network may need more.
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
_LARGEST = 2 * 10**9  # bytes of the program, as protobuf has it


def open_program(folder: Path, manifest: Manifest) -> exported.Program:
    """Opens a SavedModel.

    Args:
        folder: with saved_model.pb.
        manifest: what it should be.

    Raises:
        UserError: TensorFlow is not installed, or this is not a SavedModel, a hostile one, or another than the manifest
            says.
    """
    backend.require_tensorflow("A SavedModel")
    path = folder / "saved_model.pb"
    _check(path)
    import tensorflow as tf

    try:
        loaded = tf.saved_model.load(folder)
        function = loaded.signatures[SIGNATURE]
    except Exception as error:  # whatever a damaged graph leads to
        raise UserError(
            f"`{folder}` is not a SavedModel that TensorFlow loads: {' '.join(str(error).split())}."
        ) from error
    inputs = function.structured_input_signature[1]
    exported.check_outputs(path, manifest, [*inputs, *function.structured_outputs])
    names = OUTPUTS[manifest.answer]

    def run(images: np.ndarray, valid_size: np.ndarray) -> dict[str, np.ndarray]:
        # The loaded object owns the variables; the function alone would not keep them.
        found = loaded.signatures[SIGNATURE](images=tf.constant(images), valid_size=tf.constant(valid_size))
        return {name: found[name].numpy() for name in names}

    return run


def _check(path: Path) -> None:
    """Raises a UserError for a program that could do more than compute."""
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    if path.stat().st_size > _LARGEST:
        raise UserError(f"`{path}` has more than {_LARGEST:,} bytes; that is not an export of this program.")
    program = saved_model_pb2.SavedModel()
    try:
        program.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise UserError(f"`{path}` is not a SavedModel: {error}.") from error
    if len(program.meta_graphs) != 1 or not program.meta_graphs[0].object_graph_def.nodes:
        raise UserError(f"`{path}` is not a SavedModel of TensorFlow 2 with one graph, as exports of this program are.")
    graph = program.meta_graphs[0]
    allowed = frozenset(_OPERATIONS_OF_OURS.split())
    with_saving = allowed | frozenset(_OPERATIONS_OF_SAVERS.split())
    for node in graph.object_graph_def.nodes:
        if (kind := node.WhichOneof("kind")) not in _OBJECTS:
            raise UserError(f"`{path}` holds an object of the kind `{kind}`, which is refused.")
    for function in graph.graph_def.library.function:
        is_saver = function.signature.name.startswith(_SAVERS)
        _check_operations(path, function.node_def, with_saving if is_saver else allowed)
    # TensorFlow runs none of the outer graph here; it calls the savers.
    _check_operations(path, graph.graph_def.node, with_saving, may_save=True)


def _check_operations(path: Path, nodes: Iterable[Any], allowed: frozenset[str], *, may_save: bool = False) -> None:
    """Raises a UserError for an operation that is not allowed, or a call of a function that saves."""
    for node in nodes:
        if node.op not in allowed:
            raise UserError(f"`{path}` has the operation `{node.op}`, which no export of this program needs: refused.")
        called = [node.attr[name].func.name for name in node.attr if node.attr[name].HasField("func")]
        if not may_save and any(name.startswith(_SAVERS) for name in called):
            raise UserError(f"`{path}` would write files when it is called, which is refused.")
