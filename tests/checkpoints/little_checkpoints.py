"""Writes D0 as other projects do, with none of the product's code: names from rules of its own.

google/automl's names are spelled out from our paths; those of the others follow from automl's by substitution.
"""

import collections
import contextlib
import pickle
import re
import struct
import sys
import types
import zipfile

import numpy as np

LEVELS = 5  # P3 .. P7: a node's number begins behind its five inputs
INPUTS = {0: [3, 4], 1: [2, 5], 2: [1, 6], 3: [0, 7], 4: [1, 7, 8], 5: [2, 6, 9], 6: [3, 5, 10], 7: [4, 11]}
STAGE_STARTS = [0, 1, 3, 5, 8, 11, 15]


def automl_name(path):
    """Spells one of our paths as google/automl does."""
    *_, leaf = path.split("/")
    if path.startswith("backbone/stem"):
        layer = "conv2d" if "stem/" in path else "tpu_batch_normalization"
        return f"efficientnet-b0/stem/{layer}/{leaf}"
    if match := re.match(r"backbone/block_(\d+)/(.*)/", path):
        number, layer = int(match[1]), match[2]
        # TensorFlow counts the convolutions and the normalisations of a scope; block 0 does not expand.
        later = number > 0
        layers = {
            "expand": "conv2d",
            "expand_norm": "tpu_batch_normalization",
            "depthwise": "depthwise_conv2d",
            "depthwise_norm": "tpu_batch_normalization_1" if later else "tpu_batch_normalization",
            "squeeze_excite/reduce": "se/conv2d",
            "squeeze_excite/expand": "se/conv2d_1",
            "project": "conv2d_1" if later else "conv2d",
            "project_norm": "tpu_batch_normalization_2" if later else "tpu_batch_normalization_1",
        }
        leaf = "depthwise_kernel" if layer == "depthwise" else leaf
        return f"efficientnet-b0/blocks_{number}/{layers[layer]}/{leaf}"
    if path.startswith("feature_network/resample_p6"):
        return f"resample_p6/{'conv2d' if '/conv/' in path else 'bn'}/{leaf}"
    if match := re.match(r"feature_network/cell_(\d)_node_(\d)/(.*)", path):
        cell, node, rest = int(match[1]), int(match[2]), match[3]
        scope = f"fpn_cells/cell_{cell}/fnode{node}"
        if fusion := re.match(r"fusion/weight_(\d)", rest):
            return f"{scope}/WSM" + (f"_{fusion[1]}" if fusion[1] != "0" else "")
        if resample := re.match(r"resample_(\d)/(conv|norm)/", rest):
            place = int(resample[1])
            layer = "conv2d" if resample[2] == "conv" else "bn"
            return f"{scope}/resample_{place}_{INPUTS[node][place]}_{LEVELS + node}/{layer}/{leaf}"
        return f"{scope}/op_after_combine{LEVELS + node}/" + (
            f"bn/{leaf}" if rest.startswith("norm") else f"conv/{_separable(rest)}"
        )
    head, rest = re.match(r"(class|box)_head/(.*)", path).groups()
    if norm := re.match(r"norm_(\d)_p(\d)/", rest):
        return f"{head}_net/{head}-{norm[1]}-bn-{norm[2]}/{leaf}"
    layer = "predict" if rest.startswith("predict") else re.match(r"conv_(\d)", rest)[1]
    return f"{head}_net/{head}-{layer}/{_separable(rest)}"


def _separable(rest):
    kind, leaf = rest.split("/")[-2:]
    return "bias" if leaf == "bias" else f"{kind}_kernel"


def automl(arrays):
    """Names all arrays as google/automl does."""
    return {automl_name(path): array for path, array in arrays.items()}


def effdet(arrays):
    """Names and turns all arrays as effdet does; fusion weights of a node become one vector."""
    state, edges = {}, collections.defaultdict(dict)
    for name, array in automl(arrays).items():
        if match := re.match(r"fpn_cells/cell_(\d)/fnode(\d)/WSM(?:_(\d))?$", name):
            edges[f"fpn.cell.{match[1]}.fnode.{match[2]}.combine.edge_weights"][int(match[3] or 0)] = array
            continue
        state[_effdet_name(name)] = _turned(name, array)
    return state | {name: np.array([of[k] for k in sorted(of)], np.float32) for name, of in edges.items()}


def _turned(name, array):
    if array.ndim != 4:
        return array
    return array.transpose(2, 3, 0, 1) if name.endswith("depthwise_kernel") else array.transpose(3, 2, 0, 1)


def _effdet_name(name):
    rules = [
        (r"^efficientnet-b\d/stem/conv2d/kernel$", "backbone.conv_stem.weight"),
        (r"^efficientnet-b\d/stem/tpu_batch_normalization/", "backbone.bn1."),
        (r"^efficientnet-b\d/blocks_(\d+)/", _block),
        (r"\.se/conv2d_1/", ".se.conv_expand."),
        (r"\.se/conv2d/", ".se.conv_reduce."),
        (r"^(backbone\.blocks\.0\.\d)\.conv2d/", r"\1.conv_pw."),
        (r"\.conv2d_1/", ".conv_pwl."),
        (r"^(backbone.*)\.conv2d/", r"\1.conv_pw."),
        (r"\.depthwise_conv2d/depthwise_kernel", ".conv_dw.weight"),
        (r"\.tpu_batch_normalization_2/", ".bn3."),
        (r"\.tpu_batch_normalization_1/", ".bn2."),
        (r"\.tpu_batch_normalization/", ".bn1."),
        (r"^resample_p6/conv2d/", "fpn.resample.3.conv.conv."),
        (r"^resample_p6/bn/", "fpn.resample.3.conv.bn."),
        (r"^fpn_cells/cell_(\d)/fnode(\d)/", r"fpn.cell.\1.fnode.\2."),
        (r"\.resample_\d_(\d+)_\d+/conv2d/", r".combine.resample.\1.conv.conv."),
        (r"\.resample_\d_(\d+)_\d+/bn/", r".combine.resample.\1.conv.bn."),
        (r"\.op_after_combine\d+/conv/", ".after_combine.conv."),
        (r"\.op_after_combine\d+/bn/", ".after_combine.conv.bn."),
        (r"^(class|box)_net/(?:class|box)-(\d)-bn-(\d)/", _head_norm),
        (r"^(class|box)_net/(?:class|box)-predict/", r"\1_net.predict."),
        (r"^(class|box)_net/(?:class|box)-(\d)/", r"\1_net.conv_rep.\2."),
        (r"\.depthwise_kernel$", ".conv_dw.weight"),
        (r"\.pointwise_kernel$", ".conv_pw.weight"),
        (r"((?:conv_rep\.\d|predict|after_combine\.conv)\.)bias$", r"\1conv_pw.bias"),
        (r"\.kernel$", ".weight"),
        (r"\.gamma$", ".weight"),
        (r"\.beta$", ".bias"),
        (r"\.moving_mean$", ".running_mean"),
        (r"\.moving_variance$", ".running_var"),
    ]
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _block(match):
    number = int(match[1])
    stage = max(k for k, start in enumerate(STAGE_STARTS) if start <= number)
    return f"backbone.blocks.{stage}.{number - STAGE_STARTS[stage]}."


def _head_norm(match):
    return f"{match[1]}_net.bn_rep.{match[2]}.{int(match[3]) - 3}.bn."


def objects(arrays, owner):
    """Names all arrays by the object paths of google/automl's or NVIDIA's TensorFlow 2 checkpoints."""
    return {_object_path(name, owner): array for name, array in automl(arrays).items()}


def _object_path(name, owner):
    if name.startswith("efficientnet-b0/"):
        return f"backbone/{nvidia_backbone_path(name) if owner == 'nvidia' else _automl_backbone_path(name)}"
    rules = [
        (r"^resample_p6/", "resample_layers/0/"),
        (r"^fpn_cells/cell_(\d)/fnode(\d)/", r"fpn_cells/cells/\1/fnodes/\2/"),
        (r"/WSM$", "/vars/0"),
        (r"/WSM_(\d)$", r"/vars/\1"),
        (r"/resample_(\d)_\d+_\d+/", r"/resample_layers/\1/"),
        (r"/op_after_combine\d+/conv/", "/op_after_combine/conv_op/"),
        (r"/op_after_combine\d+/bn/", "/op_after_combine/bn/"),
        (r"^(class|box)_net/(?:class|box)-(\d)-bn-(\d)/", lambda m: f"{m[1]}_net/bns/{m[2]}/{int(m[3]) - 3}/"),
        (r"^(class|box)_net/(?:class|box)-(\d)/", r"\1_net/conv_ops/\2/"),
        (r"^class_net/class-predict/", "class_net/classes/"),
        (r"^box_net/box-predict/", "box_net/boxes/"),
    ]
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


_LAYERS = {
    "conv2d": "_expand_conv",
    "tpu_batch_normalization": "_bn0",
    "depthwise_conv2d": "_depthwise_conv",
    "tpu_batch_normalization_1": "_bn1",
    "se/conv2d": "_se/_se_reduce",
    "se/conv2d_1": "_se/_se_expand",
    "conv2d_1": "_project_conv",
    "tpu_batch_normalization_2": "_bn2",
}
# Block 0 does not expand.
_FIRST_LAYERS = {
    "depthwise_conv2d": "_depthwise_conv",
    "tpu_batch_normalization": "_bn1",
    "se/conv2d": "_se/_se_reduce",
    "se/conv2d_1": "_se/_se_expand",
    "conv2d": "_project_conv",
    "tpu_batch_normalization_1": "_bn2",
}


def _parts(name):
    number, layer, leaf = re.match(r"efficientnet-b0/(?:blocks_(\d+)|stem)/(.*)/(\w+)$", name).groups()
    return (None if number is None else int(number)), layer, leaf


def _automl_backbone_path(name):
    number, layer, leaf = _parts(name)
    if number is None:
        return f"_stem/{'_conv_stem' if layer == 'conv2d' else '_bn'}/{leaf}"
    return f"_blocks/{number}/{(_LAYERS if number else _FIRST_LAYERS)[layer]}/{leaf}"


def nvidia_backbone_path(name):
    """Counts the layers with weights of a functional model: two of the stem, six of block 0, eight of each other."""
    number, layer, leaf = _parts(name)
    if number is None:
        position = 0 if layer == "conv2d" else 1
    elif number == 0:
        position = 2 + list(_FIRST_LAYERS).index(layer)
    else:
        position = 8 + 8 * (number - 1) + list(_LAYERS).index(layer)
    return f"layer_with_weights-{position}/{leaf}"


def tree(named, make):
    """Builds the tree of objects whose attributes spell the names; `make` makes a variable."""
    import tensorflow as tf

    node, groups = tf.Module(), collections.defaultdict(dict)
    for path, array in named.items():
        first, _, rest = path.partition("/")
        groups[first][rest] = array
    for name, inner in groups.items():
        setattr(node, name, make(inner[""]) if "" in inner else tree(inner, make))
    for number in groups["vars"]:
        # A fusion's weights are there under their names, too; the file calls them so.
        setattr(node, f"WSM_{number}" if number != "0" else "WSM", getattr(node.vars, number))
    return node


def listed(node):
    """Lists all variables beside the layers, as Keras does in a SavedModel: the file calls them `variables/0` ..."""
    node.all_of_them = list(node.variables)
    return node


def automl_head():
    """The classifier that exporting google/automl's network builds in its backbone."""
    named = {f"_bn/{leaf}": np.ones(8, np.float32) for leaf in ("gamma", "beta", "moving_mean", "moving_variance")}
    named |= {"_conv_head/kernel": np.ones((1, 1, 320, 8), np.float32)}
    named |= {"_fc/kernel": np.ones((8, 5), np.float32), "_fc/bias": np.ones(5, np.float32)}
    return {f"backbone/_head/{name}": array for name, array in named.items()}


def nvidia_top():
    """The classifier on top of NVIDIA's backbone: three layers more."""
    named = {f"129/{leaf}": np.ones(8, np.float32) for leaf in ("gamma", "beta", "moving_mean", "moving_variance")}
    named |= {"128/kernel": np.ones((1, 1, 320, 8), np.float32)}
    named |= {"130/kernel": np.ones((8, 5), np.float32), "130/bias": np.ones(5, np.float32)}
    return {f"layer_with_weights-{name}": array for name, array in named.items()}


def write_tensorflow1(prefix, named, *, raw=None):
    """Writes a TensorFlow 1 checkpoint; with `raw`, those are the values and `named` the averages."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        for name, array in named.items():
            if raw is None:
                v1.get_variable(name, initializer=array)
                continue
            v1.get_variable(name, initializer=raw[name])
            v1.get_variable(f"{name}/ExponentialMovingAverage", initializer=array)
            v1.get_variable(f"{name}/Momentum", initializer=np.zeros_like(array))
        v1.get_variable("global_step", initializer=np.int64(7))
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(prefix), write_meta_graph=False)


def write_hdf5(path, named):
    """Writes what Keras 2's save_weights did: a group a layer, datasets called by the variables' names."""
    import h5py

    with h5py.File(path, "w") as file:
        for name, array in named.items():
            file.create_dataset(f"{name.split('/')[0]}/{name}:0", data=array)


class _Global:
    """A stand-in for a function of PyTorch while it is pickled."""


@contextlib.contextmanager
def _torch_names():
    """Lets `pickle` write references to PyTorch, which need not be installed."""
    modules = {name: types.ModuleType(name) for name in ("torch", "torch._utils")}
    for module, name in (("torch._utils", "_rebuild_tensor_v2"), ("torch", "FloatStorage"), ("torch", "LongStorage")):
        made = type(name, (_Global,), {"__module__": module, "__qualname__": name})
        setattr(modules[module], name, made)
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield modules
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class _Storage:
    def __init__(self, key, array):
        self.key, self.array = key, array


class _TorchTensor:
    """A contiguous tensor, pickled as PyTorch pickles its own."""

    def __init__(self, key, array, modules):
        self.storage, self.modules = _Storage(key, np.ascontiguousarray(array)), modules

    def __reduce__(self):
        array = self.storage.array
        strides = tuple(step // array.itemsize for step in array.strides)
        arguments = (self.storage, 0, array.shape, strides, False, collections.OrderedDict())
        return self.modules["torch._utils"]._rebuild_tensor_v2, arguments


class _Pickler(pickle.Pickler):
    def __init__(self, file, modules):
        super().__init__(file, protocol=2)
        self.modules = modules

    def persistent_id(self, value):
        if not isinstance(value, _Storage):
            return None
        kind = "FloatStorage" if value.array.dtype == np.float32 else "LongStorage"
        return ("storage", getattr(self.modules["torch"], kind), value.key, "cpu", value.array.size)


def write_pytorch(path, saved, *, legacy=False):
    """Writes nested dicts of arrays as `torch.save` does, in its zip form or the one before it."""
    import io

    storages = {}

    def wrap(value):
        if isinstance(value, dict):
            return collections.OrderedDict((key, wrap(inner)) for key, inner in value.items())
        if isinstance(value, np.ndarray):
            key = str(len(storages))
            storages[key] = np.ascontiguousarray(value)
            return _TorchTensor(key, value, modules)
        return value

    with _torch_names() as modules:
        body = io.BytesIO()
        _Pickler(body, modules).dump(wrap(saved))
    if not legacy:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("archive/data.pkl", body.getvalue())
            for key, array in storages.items():
                archive.writestr(f"archive/data/{key}", array.tobytes())
            archive.writestr("archive/version", "3\n")
        return
    with path.open("wb") as file:
        pickle.dump(0x1950A86A20F9469CFC6C, file, protocol=2)
        pickle.dump(1001, file, protocol=2)
        pickle.dump({"protocol_version": 1001, "little_endian": True}, file, protocol=2)
        file.write(body.getvalue())
        pickle.dump(list(storages), file, protocol=2)
        for array in storages.values():
            file.write(struct.pack("<q", array.size) + array.tobytes())
