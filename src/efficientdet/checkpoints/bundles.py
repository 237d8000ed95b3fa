"""TensorFlow's checkpoints: variables by name (TensorFlow 1) or by their place in a graph of objects (TensorFlow 2).

Only the variables' files are read, of a SavedModel too: its graph, which could do anything, is never loaded. The index
is checked before TensorFlow opens it (see `index_tables`).
"""

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from efficientdet.checkpoints import index_tables
from efficientdet.checkpoints.tensors import Tensor
from efficientdet.errors import UserError

AVERAGE_SUFFIX = "/ExponentialMovingAverage"
_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"

# Edges that lead from a network to its variables; Keras has many others to the same objects.
_EDGES = re.compile(
    r"\d+|backbone|_stem|_conv_stem|_bn\d?|_blocks|_(expand|depthwise|project)_conv|_se|_se_reduce|_se_expand|"
    r"_head|_conv_head|_fc|"
    r"layer_with_weights-\d+|resample_layers|conv2d|bn|fpn_cells|cells|fnodes|vars|op_after_combine|conv_op|"
    r"(class|box)_net|conv_ops|bns|classes|boxes|kernel|bias|gamma|beta|moving_mean|moving_variance|"
    r"(depthwise|pointwise)_kernel"
)
_DEEPEST = 10
_MOST_PATHS = 200_000
_DETECTOR_EDGES = {"backbone", "fpn_cells", "class_net", "box_net"}


def find_prefix(path: Path) -> Path | None:
    """Finds the checkpoint that a path means: prefix, index file, folder of a checkpoint, SavedModel.

    Returns:
        The path without `.index`; none: there is no checkpoint of TensorFlow.
    """
    if path.suffix == ".index" and path.is_file():
        return path.with_suffix("")
    if path.name and path.with_name(f"{path.name}.index").is_file():
        return path
    if re.fullmatch(r".+\.data-\d{5}-of-\d{5}", path.name):
        return find_prefix(path.with_suffix(""))
    if path.is_dir():
        if (path / "variables" / "variables.index").is_file():
            return path / "variables" / "variables"
        found = sorted(path.glob("*.index"))
        if len(found) > 1 and (latest := _latest(path)) is not None:
            return latest
        if len(found) > 1:
            names = ", ".join(file.stem for file in found[:5])
            raise UserError(f"`{path}` has {len(found)} checkpoints ({names}); name one of them.")
        if found:
            return found[0].with_suffix("")
        inside = [child for child in sorted(path.iterdir()) if child.is_dir()]
        if len(inside) == 1:  # an archive's only folder
            return find_prefix(inside[0])
    return None


def _latest(folder: Path) -> Path | None:
    """Reads which checkpoint of a folder is the latest from TensorFlow's own file."""
    try:
        text = (folder / "checkpoint").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    match = re.search(r'^model_checkpoint_path: "([^"/\\]+)"', text, re.MULTILINE)
    if match is None or not (folder / f"{match[1]}.index").is_file():
        return None
    return folder / match[1]


def read_variables(prefix: Path) -> dict[str, Tensor]:
    """Describes all tensors of a checkpoint by the keys of the file.

    Raises:
        UserError: it is damaged.
    """
    import tensorflow as tf

    try:
        entries = index_tables.read_index(prefix)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"`{prefix}` is not a complete TensorFlow checkpoint: {reason}.") from error
    reader = functools.cache(lambda: tf.train.load_checkpoint(str(prefix)))
    return {
        key: Tensor(
            key=key, shape=entry.shape, dtype=entry.dtype, read=functools.partial(_read, reader, prefix, key, entry)
        )
        for key, entry in entries.items()
    }


def _read(reader: Callable[[], Any], prefix: Path, key: str, entry: index_tables.Entry) -> Any:
    """Reads a tensor; TensorFlow compares its checksum, but takes any memory for a string."""
    import tensorflow as tf

    try:
        return index_tables.read_string(entry) if entry.dtype == "string" else reader().get_tensor(key)
    except (tf.errors.OpError, OSError, ValueError, RuntimeError, LookupError) as error:
        raise UserError(f"`{prefix}` is damaged at `{key}`: {_first_line(error)}.") from error


def _first_line(error: Exception) -> str:
    return str(getattr(error, "message", error)).strip().splitlines()[0].rstrip(".")


class ObjectGraph:
    """The graph of objects of a TensorFlow 2 checkpoint."""

    def __init__(self, prefix: Path, tensors: dict[str, Tensor]):
        """Reads the graph from the checkpoint's own tensor of it."""
        from google.protobuf.message import DecodeError
        from tensorflow.core.protobuf import trackable_object_graph_pb2

        graph = trackable_object_graph_pb2.TrackableObjectGraph()
        try:
            graph.ParseFromString(tensors[_GRAPH_KEY].read())
        except (DecodeError, TypeError) as error:
            raise UserError(f"`{prefix}` has a damaged object graph; the checkpoint cannot be read.") from error
        self._nodes = graph.nodes
        self._children = [{c.local_name: c.node_id for c in node.children} for node in graph.nodes]
        if any(not 0 <= number < len(self._nodes) for children in self._children for number in children.values()):
            raise UserError(f"`{prefix}` has a damaged object graph; the checkpoint cannot be read.")
        self._tensors = tensors
        # Slot variables belong to an optimizer and are listed with it: (name, variable) -> the slot's node.
        self._averages = {
            slot.original_variable_node_id: slot.slot_variable_node_id
            for node in graph.nodes
            for slot in node.slot_variables
            if slot.slot_name == "average" and 0 <= slot.slot_variable_node_id < len(self._nodes)
        }

    def network(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Finds the network in the graph and lists its tensors by their paths.

        Returns:
            The tensors, and the averages of those that an optimizer keeps averages of.
        """
        root = next((n for n, children in enumerate(self._children) if children.keys() >= _DETECTOR_EDGES), None)
        if root is None:
            root = next((n for n, children in enumerate(self._children) if "layer_with_weights-0" in children), 0)
        tensors, averages = {}, {}
        for path, number in self._paths(root):
            if (tensor := self._tensor(number)) is not None:
                tensors[path] = tensor
            if (average := self._tensor(self._averages.get(number, -1))) is not None:
                averages[path] = average
        return tensors, averages

    def _paths(self, root: int) -> Iterator[tuple[str, int]]:
        """Goes through everything below `root` along known edges."""
        pending, seen = [("", root, 0)], 0
        while pending and seen < _MOST_PATHS:
            path, number, depth = pending.pop()
            seen += 1
            yield path, number
            if depth < _DEEPEST:
                pending += [
                    (f"{path}/{name}" if path else name, child, depth + 1)
                    for name, child in self._children[number].items()
                    if _EDGES.fullmatch(name)
                ]

    def _tensor(self, number: int) -> Tensor | None:
        """Returns the value of a node; none: it has none in the file."""
        if number < 0:
            return None
        for attribute in self._nodes[number].attributes:
            if attribute.name == "VARIABLE_VALUE":
                return self._tensors.get(attribute.checkpoint_key)
        return None


def is_object_based(tensors: dict[str, Tensor]) -> bool:
    """Tells whether a checkpoint was written by TensorFlow 2."""
    return _GRAPH_KEY in tensors
