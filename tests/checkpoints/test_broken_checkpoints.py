"""Checkpoints that are damaged, of something else, or hostile: one line each, and nothing is run, loaded or written."""

import io
import os
import pathlib
import pickle
import struct
import zipfile

import h5py
import little_checkpoints
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file

from efficientdet import cli, presets
from efficientdet.model import weights
from efficientdet.model.efficientdet import EfficientDet

_POINTWISE = "class_net.conv_rep.0.conv_pw.weight"


@pytest.fixture(scope="module")
def arrays():
    model = EfficientDet(presets.MODELS["d0"])
    return {weights.variable_name(variable): variable.numpy() for variable in model.weights}


@pytest.fixture(scope="module")
def state(arrays):
    """A whole D0 in effdet's words."""
    return {name: np.ascontiguousarray(array) for name, array in little_checkpoints.effdet(arrays).items()}


def _saved(path, state):
    save_file(state, path)
    return path


def _cut_safetensors(folder, state, arrays):
    path = _saved(folder / "cut.safetensors", state)
    os.truncate(path, path.stat().st_size - 1000)
    return path, "not a complete safetensors file"


def _cut_pytorch_zip(folder, state, arrays):
    little_checkpoints.write_pytorch(folder / "cut.pth", state)
    os.truncate(folder / "cut.pth", (folder / "cut.pth").stat().st_size // 2)
    return folder / "cut.pth", "has an unknown format"


def _cut_pytorch_legacy(folder, state, arrays):
    little_checkpoints.write_pytorch(folder / "cut.pth", state, legacy=True)
    os.truncate(folder / "cut.pth", (folder / "cut.pth").stat().st_size // 2)
    return folder / "cut.pth", "not a complete PyTorch file"


def _cut_hdf5(folder, state, arrays):
    little_checkpoints.write_hdf5(folder / "cut.h5", little_checkpoints.automl(arrays))
    os.truncate(folder / "cut.h5", (folder / "cut.h5").stat().st_size // 2)
    return folder / "cut.h5", "not a complete HDF5 file"


def _bundle_without_data(folder, state, arrays):
    little_checkpoints.write_tensorflow1(folder / "model", little_checkpoints.automl(arrays))
    next(folder.glob("model.data-*")).unlink()
    return folder / "model", "not a complete TensorFlow checkpoint: No such file or directory"


def _cut_bundle(folder, state, arrays):
    little_checkpoints.write_tensorflow1(folder / "model", little_checkpoints.automl(arrays))
    data = next(folder.glob("model.data-*"))
    os.truncate(data, data.stat().st_size // 2)
    return folder / "model", "extends beyond the end of model.data-00000-of-00001"


def _a_flipped_bit_in_a_bundle(folder, state, arrays):
    little_checkpoints.write_tensorflow1(folder / "model", little_checkpoints.automl(arrays))
    data = next(folder.glob("model.data-*"))
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    return folder / "model", "damaged at"


def _damaged_index(folder, state, arrays):
    little_checkpoints.write_tensorflow1(folder / "model", little_checkpoints.automl(arrays))
    (folder / "model.index").write_bytes(b"\0" * 500)
    return folder / "model", "not a complete TensorFlow checkpoint"


def _another_network(folder, state, arrays):
    resnet = {f"layer{n}.0.conv1.weight": np.zeros((8, 8, 3, 3), np.float32) for n in range(4)}
    return _saved(folder / "resnet.safetensors", resnet), "is not a known EfficientDet"


def _another_model_than_asked_for(folder, state, arrays):
    return _saved(folder / "d0.safetensors", state), "does not match the model", "--model", "d1"


def _a_tensor_missing(folder, state, arrays):
    without = {name: array for name, array in state.items() if name != _POINTWISE}
    return _saved(folder / "missing.safetensors", without), f"`{_POINTWISE}` is missing"


def _a_tensor_left_over(folder, state, arrays):
    more = {**state, "seg_net.predict.weight": np.zeros(3, np.float32)}
    return _saved(folder / "more.safetensors", more), "`seg_net.predict.weight` is unexpected"


def _a_tensor_transposed(folder, state, arrays):
    name = "fpn.resample.3.conv.conv.weight"
    turned = {**state, name: np.ascontiguousarray(state[name].transpose(1, 0, 2, 3))}
    return _saved(folder / "turned.safetensors", turned), "has shape (320, 64, 1, 1); expected (64, 320, 1, 1)"


def _not_a_number(folder, state, arrays):
    name = "box_net.predict.conv_pw.bias"
    bad = {**state, name: np.full_like(state[name], np.nan)}
    return _saved(folder / "nan.safetensors", bad), f"`{name}` has values that are not finite"


def _a_number_beyond_float32(folder, state, arrays):
    name = "box_net.predict.conv_pw.bias"
    bad = {**state, name: np.full(state[name].shape, 1e300)}
    return _saved(folder / "large.safetensors", bad), f"`{name}` has values that are not finite"


def _a_variance_below_0(folder, state, arrays):
    name = "backbone.bn1.running_var"
    return _saved(folder / "var.safetensors", {**state, name: -state[name] - 1}), f"`{name}` has values below 0"


def _integers(folder, state, arrays):
    name = "backbone.bn1.bias"
    bad = {**state, name: state[name].astype(np.int64)}
    return _saved(folder / "int.safetensors", bad), "has type int64; expected float32"


def _other_classes(folder, state, arrays):
    model = EfficientDet(presets.MODELS["d0"].__class__(num_classes=20))
    of_voc = little_checkpoints.effdet({weights.variable_name(v): v.numpy() for v in model.weights})
    path = _saved(folder / "voc.safetensors", {k: np.ascontiguousarray(v) for k, v in of_voc.items()})
    return path, "has 20 classes, not COCO's 90; pass their names with `--classes FILE`"


def _effdet_s_own_model(folder, state, arrays):
    own = {name: array for name, array in state.items() if not name.endswith("conv_pw.bias")}
    return _saved(folder / "efficientdet_d0.safetensors", own), "one of effdet's own models"


class _Command:
    """A pickle of it runs a command when it is loaded."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def _a_command_in_a_zip(folder, state, arrays):
    with zipfile.ZipFile(folder / "evil.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(_Command(folder / "trace"), protocol=2))
    return folder / "evil.pth", "asks to run `posix.system`"


def _a_command_in_the_older_form(folder, state, arrays):
    start = b"".join(pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))
    (folder / "evil.pth").write_bytes(start + pickle.dumps({"state_dict": _Command(folder / "trace")}, protocol=2))
    return folder / "evil.pth", "asks to run `posix.system`"


def _a_function_of_ours(folder, state, arrays):
    """`builtins.getattr` and the like are refused too, not only known evils."""
    body = b"\x80\x02cbuiltins\ngetattr\n(cbuiltins\nprint\nX\x08\x00\x00\x00__call__tR."
    with zipfile.ZipFile(folder / "evil.pth", "w") as archive:
        archive.writestr("archive/data.pkl", body)
    return folder / "evil.pth", "asks to run `"


def _a_zip_bomb(folder, state, arrays):
    with zipfile.ZipFile(folder / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 200_000_000)
    return folder / "bomb.pth", "is compressed"


def _a_tensor_larger_than_its_file(folder, state, arrays):
    """A storage of four numbers, said to be a tensor of 2^40."""

    class _Huge(little_checkpoints._TorchTensor):
        def __reduce__(self):
            rebuild, arguments = super().__reduce__()
            return rebuild, (arguments[0], 0, (2**40,), (0,), *arguments[4:])

    body = io.BytesIO()
    with little_checkpoints._torch_names() as modules:
        huge = _Huge("0", np.zeros(4, np.float32), modules)
        little_checkpoints._Pickler(body, modules).dump({_POINTWISE: huge})
    with zipfile.ZipFile(folder / "huge.pth", "w") as archive:
        archive.writestr("archive/data.pkl", body.getvalue())
        archive.writestr("archive/data/0", bytes(16))
    return folder / "huge.pth", "builds a tensor beyond its storage"


def _a_dictionary_in_itself_many_times(folder, state, arrays):
    inner = {"a": 1}
    for _ in range(40):
        inner = {str(n): inner for n in range(10)}
    with zipfile.ZipFile(folder / "laughs.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(inner, protocol=2))
    return folder / "laughs.pth", "too many entries"


def _pickled(path, body, *, legacy=False):
    """Writes a file of PyTorch's around a pickle."""
    if legacy:
        path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {})) + body)
        return path
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", body)
    return path


def _a_note_under_a_huge_number(folder, state, arrays):
    """Seven bytes for which Python's unpickler makes a list of 1 GB, and of 64 GB if they say so."""
    return _pickled(folder / "memo.pth", b"\x80\x02Nr\x00\x00\x00\x04."), "its pickle is damaged"


def _a_note_under_a_huge_number_in_the_older_form(folder, state, arrays):
    body = b"\x80\x02Nr\x00\x00\x00\x04."
    return _pickled(folder / "memo.pth", body, legacy=True), "its pickle is damaged"


def _a_string_longer_than_its_file(folder, state, arrays):
    path = _pickled(folder / "long.pth", b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.")
    return path, "not a complete PyTorch file"


def _a_million_of_sets(folder, state, arrays):
    return _pickled(folder / "sets.pth", b"\x80\x04(" + 1_100_000 * b"\x8f" + b"t."), "its pickle is too long"


def _an_endless_pickle_in_the_older_form(folder, state, arrays):
    body = b"\x80\x04(" + 9 * 2**20 * b"N" + b"t."
    return _pickled(folder / "endless.pth", body, legacy=True), "its pickle is too long"


def _a_number_of_a_million_digits(folder, state, arrays):
    """Its product with others would take minutes."""

    class _Huge(little_checkpoints._TorchTensor):
        def __reduce__(self):
            rebuild, arguments = super().__reduce__()
            return rebuild, (arguments[0], 0, (2**3_000_000, 0), (0, 0), *arguments[4:])

    body = io.BytesIO()
    with little_checkpoints._torch_names() as modules:
        little_checkpoints._Pickler(body, modules).dump({_POINTWISE: _Huge("0", np.zeros(4, np.float32), modules)})
    return _pickled(folder / "digits.pth", body.getvalue()), "with an invalid shape"


def _a_flipped_bit(folder, state, arrays):
    """The archive has a checksum of each storage, which is looked at when its values are read."""
    little_checkpoints.write_pytorch(folder / "flipped.pth", state)
    content = bytearray((folder / "flipped.pth").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "flipped.pth").write_bytes(content)
    return folder / "flipped.pth", "Bad CRC-32"


def _a_huge_header(folder, state, arrays):
    (folder / "header.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    return folder / "header.safetensors", "not a complete safetensors file"


def _a_huge_dataset(folder, state, arrays):
    """HDF5 stores nothing for values that were never written."""
    little_checkpoints.write_hdf5(folder / "huge.h5", little_checkpoints.automl(arrays))
    with h5py.File(folder / "huge.h5", "a") as file:
        name = "box_net/box_net/box-predict/bias:0"
        del file[name]
        file.create_dataset(name, shape=(2**40,), dtype="float32", chunks=(1024,))
    return folder / "huge.h5", "has shape (1099511627776,); expected (36,)"


def _a_huge_number_of_classes(folder, state, arrays):
    little_checkpoints.write_hdf5(folder / "huge.h5", little_checkpoints.automl(arrays))
    with h5py.File(folder / "huge.h5", "a") as file:
        name = "class_net/class_net/class-predict/bias:0"
        del file[name]
        file.create_dataset(name, shape=(9 * 10**9,), dtype="float32", chunks=(1024,))
    return folder / "huge.h5", "which means 1,000,000,000 classes; expected at most 30,000"


def _groups_in_groups_many_times(folder, state, arrays):
    """Two names for each group: 2^30 paths through 30 groups, and no dataset at the end of any."""
    with h5py.File(folder / "laughs.h5", "w") as file:
        group = file
        for _ in range(30):
            group["b"] = inner = group.create_group("a")
            group = inner
    return folder / "laughs.h5", "too many entries"


def _a_link_to_another_file(folder, state, arrays):
    (folder / "secret.h5").write_bytes(b"")
    with h5py.File(folder / "link.h5", "w") as file:
        file["class_net"] = h5py.ExternalLink(str(folder / "secret.h5"), "/")
    return folder / "link.h5", "has a link `class_net`"


def _values_in_another_file(folder, state, arrays):
    (folder / "secret").write_bytes(bytes(64))
    with h5py.File(folder / "outside.h5", "w") as file:
        file.create_dataset("class_net/bias:0", shape=(16,), dtype="f4", external=[(str(folder / "secret"), 0, 64)])
    return folder / "outside.h5", "in another file"


def _a_damaged_object_graph(folder, state, arrays):
    named = {"_CHECKPOINTABLE_OBJECT_GRAPH": tf.constant(b"\xff\xff\xff")}
    tf.raw_ops.SaveV2(
        prefix=str(folder / "graph"), tensor_names=list(named), shape_and_slices=[""], tensors=list(named.values())
    )
    return folder / "graph", "has a damaged object graph"


def _several_checkpoints(folder, state, arrays):
    for name in ("a", "b"):
        (folder / f"{name}.index").write_bytes(b"")
    return folder, "has 2 checkpoints (a, b); pass the path of one of them"


def _an_empty_file(folder, state, arrays):
    (folder / "empty.pth").write_bytes(b"")
    return folder / "empty.pth", "has an unknown format"


def _an_empty_folder(folder, state, arrays):
    return folder, "does not contain a checkpoint"


def _nothing(folder, state, arrays):
    return folder / "nowhere.pth", "cannot be read: No such file"


def _a_device(folder, state, arrays):
    return pathlib.Path("/dev/null"), "`/dev/null` is not a file"


def _an_image(folder, state, arrays):
    (folder / "image.pth").write_bytes(b"\xff\xd8\xff\xe0" + bytes(100))
    return folder / "image.pth", "has an unknown format"


_BROKEN = [made for name, made in list(globals().items()) if name.startswith("_") and getattr(made, "__code__", None)
           and made.__code__.co_varnames[:3] == ("folder", "state", "arrays")]  # fmt: skip


@pytest.mark.parametrize("make", _BROKEN, ids=lambda make: make.__name__.strip("_"))
def test_a_broken_checkpoint_is_one_line(make, state, arrays, tmp_path, capfd):
    folder = tmp_path / "given"
    folder.mkdir()
    path, expected, *options = make(folder, state, arrays)
    before = sorted(tmp_path.rglob("*"))
    capfd.readouterr()
    output = tmp_path / "ours.safetensors"
    assert cli.main(["import-weights", str(path), "--output", str(output), *options]) == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("efficientdet:")]
    assert len(lines) == 1
    assert expected in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_there_are_more_than_15_of_them():
    assert len(_BROKEN) > 15
