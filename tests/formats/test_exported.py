"""Graphs of strangers: what could do more than compute is refused before it is run."""

import importlib.util
import sys

import numpy as np
import pytest

from efficientdet.errors import UserError
from efficientdet.formats import litert, onnx, openvino, saved_model
from efficientdet.formats.manifest import Manifest, PostprocessConfig
from efficientdet.structures import Category


@pytest.fixture(scope="module")
def manifest(tiny):
    return Manifest(
        target="saved_model",
        precision="float32",
        answer="raw",
        batch_size=0,
        has_letterbox=False,
        model=tiny,
        categories=tuple(Category(id=number, name=str(number)) for number in range(3)),
        postprocess=PostprocessConfig(),
    )


def _needs(package):
    return pytest.mark.skipif(not importlib.util.find_spec(package), reason=f"{package} is not installed")


def _onnx_graph(path, nodes, initializers=()):
    from onnx import TensorProto, helper, save_model

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("images", "class_logits")]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], list(initializers))
    save_model(helper.make_model(graph), path)


@_needs("onnxruntime")
def test_onnx_with_a_custom_operation_is_refused_inside_of_a_loop_too(tmp_path, manifest):
    from onnx import helper

    path = tmp_path / "model.onnx"
    custom = helper.make_node("Evil", ["images"], ["class_logits"], domain="some.one")
    _onnx_graph(path, [custom])
    with pytest.raises(UserError, match=r"custom operation `some\.one\.Evil`, which is not allowed"):
        onnx.open_program(path, manifest)
    body = helper.make_graph([custom], "body", [], [])
    branch = helper.make_node("If", ["images"], ["class_logits"], then_branch=body, else_branch=body)
    _onnx_graph(path, [branch])
    with pytest.raises(UserError, match="custom operation"):
        onnx.open_program(path, manifest)


@_needs("onnxruntime")
def test_onnx_with_values_in_other_files_is_refused(tmp_path, manifest):
    from onnx import TensorProto, helper

    values = TensorProto(name="w", dims=[1], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    values.external_data.add(key="location", value="/etc/passwd")
    path = tmp_path / "model.onnx"
    _onnx_graph(path, [helper.make_node("Add", ["images", "w"], ["class_logits"])], [values])
    with pytest.raises(UserError, match="values in other files, which is not allowed"):
        onnx.open_program(path, manifest)


@_needs("onnxruntime")
def test_what_is_no_onnx_graph_of_ours_is_one_line(tmp_path, manifest):
    from onnx import helper

    path = tmp_path / "model.onnx"
    _onnx_graph(path, [helper.make_node("Identity", ["images"], ["class_logits"])])
    with pytest.raises(UserError, match="has inputs and outputs class_logits, images; expected best_logits"):
        onnx.open_program(path, manifest)
    _onnx_graph(path, [helper.make_node("Nothing", ["images"], ["class_logits"])])
    with pytest.raises(UserError, match="cannot be loaded by ONNX Runtime"):
        onnx.open_program(path, manifest)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="is not an ONNX graph"):
        onnx.open_program(path, manifest)


def _save(folder, function):
    import tensorflow as tf

    signature = [tf.TensorSpec([1], tf.float32, name="images")]
    module = tf.Module()
    module.scale = tf.Variable(2.0)
    signatures = {"letterboxed": tf.function(lambda images: function(images, module.scale), input_signature=signature)}
    tf.saved_model.save(module, folder, signatures=signatures)


def test_a_saved_model_that_touches_files_is_refused(tmp_path, manifest):
    import tensorflow as tf

    def write(images, scale):
        tf.io.write_file(str(tmp_path / "written"), "x")
        return {"class_logits": images * scale}

    _save(tmp_path / "bad", write)
    with pytest.raises(UserError, match="has the operation `WriteFile`, which is not allowed in an export"):
        saved_model.open_program(tmp_path / "bad", manifest)
    assert not (tmp_path / "written").exists()


def test_a_saved_model_that_saves_when_it_is_called_is_refused(tmp_path, manifest):
    """The operations that save variables are in every SavedModel, but no signature may use them."""
    import tensorflow as tf

    def save(images, scale):
        tf.raw_ops.SaveV2(
            prefix=str(tmp_path / "saved"), tensor_names=["x"], shape_and_slices=[""], tensors=[tf.identity(scale)]
        )
        return {"class_logits": images * scale}

    _save(tmp_path / "bad", save)
    with pytest.raises(UserError, match="has the operation `SaveV2`"):
        saved_model.open_program(tmp_path / "bad", manifest)


def test_a_saved_model_with_a_table_or_of_another_kind_is_refused(tmp_path, manifest):
    import tensorflow as tf

    module = tf.Module()
    (tmp_path / "words.txt").write_text("a\n")
    module.file = tf.saved_model.Asset(str(tmp_path / "words.txt"))
    tf.saved_model.save(module, tmp_path / "bad")
    with pytest.raises(UserError, match="has an object of kind `asset`"):
        saved_model.open_program(tmp_path / "bad", manifest)
    (tmp_path / "bad" / "saved_model.pb").write_bytes(b"\xff\xff\xff")
    with pytest.raises(UserError, match="is not a SavedModel"):
        saved_model.open_program(tmp_path / "bad", manifest)
    (tmp_path / "bad" / "saved_model.pb").write_bytes(b"")
    with pytest.raises(UserError, match="was not exported by this program: expected a TensorFlow 2 SavedModel"):
        saved_model.open_program(tmp_path / "bad", manifest)


def test_a_saved_model_that_only_computes_is_loaded_and_then_compared(tmp_path, manifest):
    _save(tmp_path / "other", lambda images, scale: {"class_logits": images * scale})
    with pytest.raises(UserError, match="has inputs and outputs class_logits, images; expected"):
        saved_model.open_program(tmp_path / "other", manifest)


@_needs("ai_edge_litert")
def test_litert_with_operations_of_others_is_refused(tmp_path, manifest):
    import tensorflow as tf

    signature = [tf.TensorSpec([4], tf.float32, name="images")]
    function = tf.function(lambda images: {"class_logits": tf.raw_ops.Betainc(a=images, b=images, x=images)}, signature)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], tf.Module())
    converter.allow_custom_ops = True
    path = tmp_path / "model.tflite"
    path.write_bytes(converter.convert())
    with pytest.raises(UserError, match="custom operation `Betainc`, which is not allowed"):
        litert.open_program(path, manifest)


@_needs("ai_edge_litert")
@pytest.mark.parametrize("content", [b"", b"\0" * 40, b"\x1c\0\0\0TFL3" + b"\xff" * 60])
def test_what_is_no_litert_graph_is_one_line(tmp_path, manifest, content):
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    with pytest.raises(UserError, match="LiteRT"):
        litert.open_program(path, manifest)


@_needs("openvino")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("<net>", "is not an OpenVINO graph", id="cut short"),
        pytest.param('<!DOCTYPE n [<!ENTITY a "b">]><net>&a;</net>', "is not an OpenVINO graph", id="entities"),
        pytest.param(
            '<net><layers><layer id="0" type="Evil" version="extension"/></layers></net>',
            r"custom operation `extension\.Evil`, which is not allowed",
            id="an operation of others",
        ),
        pytest.param('<net name="a" version="11"><layers/></net>', "reads|inputs and outputs", id="empty"),
    ],
)
def test_what_is_no_openvino_graph_of_ours_is_one_line(tmp_path, manifest, text, words):
    path = tmp_path / "model.xml"
    path.write_text(text)
    (tmp_path / "model.bin").write_bytes(np.zeros(4, np.uint8).tobytes())
    core = openvino.import_openvino().Core()
    with pytest.raises(UserError, match=words):
        openvino.read(core, path, manifest)
    assert sys.modules["openvino_telemetry"] is None
