"""What an export says of itself is checked before anything of it is run."""

import dataclasses
import json

import pytest

from efficientdet.errors import UserError
from efficientdet.formats import manifest as manifests
from efficientdet.structures import Category

_CATEGORIES = tuple(Category(id=number + 1, name=f"class {number}") for number in range(3))


@pytest.fixture
def folder(tiny, tmp_path):
    """A folder that looks like an export; nobody runs it."""
    folder = tmp_path / "export"
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "variables" / "data").write_bytes(b"numbers")
    manifests.write(
        folder,
        manifests.Manifest(
            target="saved_model",
            precision="float16",
            answer="detections",
            batch_size=2,
            has_letterbox=True,
            model=tiny,
            categories=_CATEGORIES,
            postprocess=manifests.PostprocessConfig(max_detections=7),
        ),
    )
    return folder


def _edit(folder, change):
    path = folder / manifests.FILE
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_a_manifest_is_read_as_it_was_written(folder, tiny):
    for location in (folder, folder / "saved_model.pb", folder / manifests.FILE):
        assert manifests.is_export(location)
        found, manifest = manifests.read(location)
        assert found == folder
        assert (manifest.model, manifest.categories) == (tiny, _CATEGORIES)
        assert (manifest.precision, manifest.batch_size, manifest.postprocess.max_detections) == ("float16", 2, 7)
        assert manifest.files.keys() == {"saved_model.pb", "variables/data"}


def _longer(folder):
    with (folder / "variables" / "data").open("ab") as file:
        file.write(b"!")


def _link(folder):
    (folder / "variables" / "data").rename(folder.parent / "elsewhere")
    (folder / "variables" / "data").symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(_longer, "data` was damaged or changed: its SHA-256", id="another file"),
        pytest.param(lambda f: (f / "variables" / "data").unlink(), "data` is missing", id="no file"),
        pytest.param(
            lambda f: (f / "saved_model.pbtxt").write_text("x"), "pbtxt` is not listed in", id="one more file"
        ),
        pytest.param(_link, "is a symbolic link", id="a link"),
        pytest.param(lambda f: (f / manifests.FILE).unlink(), "export.json` is missing", id="no manifest"),
        pytest.param(lambda f: (f / manifests.FILE).write_text("{"), "is not valid JSON", id="half a manifest"),
        pytest.param(lambda f: (f / manifests.FILE).write_text("[]"), "has format 'None'", id="no object"),
        pytest.param(lambda f: _edit(f, lambda v: v.update(format="9")), "has format '9'", id="another format"),
        pytest.param(lambda f: _edit(f, lambda v: v.update(target="x")), "target` is 'x'", id="unknown target"),
        pytest.param(lambda f: _edit(f, lambda v: v.update(target="onnx")), "has no model.onnx", id="another target"),
        pytest.param(lambda f: _edit(f, lambda v: v.update(more=1)), "unknown field `more`", id="unknown field"),
        pytest.param(lambda f: _edit(f, lambda v: v.pop("model")), "KeyError|incomplete", id="no model"),
        pytest.param(
            lambda f: _edit(f, lambda v: v["categories"].pop()), "has 2 classes, but its model has 3", id="class"
        ),
        pytest.param(
            lambda f: _edit(f, lambda v: v["model"].update(image_size=[32, 32])),
            "is inconsistent",
            id="another size",
        ),
        pytest.param(
            lambda f: _edit(f, lambda v: v["files"].update({"../../x": "0" * 64})),
            "names inside the folder",
            id="out",
        ),
        pytest.param(
            lambda f: _edit(f, lambda v: v["postprocess"].update(nms_sigma=0)), "has invalid settings", id="sigma"
        ),
    ],
)
def test_damage_is_one_line(folder, damage, words):
    damage(folder)
    with pytest.raises(UserError, match=words):
        manifests.read(folder)


def test_what_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        manifests.read(tmp_path / "model.onnx")
    assert not manifests.is_export(tmp_path / "weights.safetensors")
    assert not manifests.is_export(tmp_path)


def test_another_version_s_manifest_may_have_other_figures_of_agreement(folder):
    _edit(folder, lambda v: v.update(agreement={"anything": 1}))
    assert manifests.read(folder)[1].agreement == {"anything": 1}
    _edit(folder, lambda v: v.update(agreement=3))
    assert manifests.read(folder)[1].agreement == {}


def test_a_manifest_names_every_setting_another_program_needs(folder, tiny):
    values = json.loads((folder / manifests.FILE).read_text())
    assert values["preprocessing"]["image_size"] == list(tiny.image_size)
    assert values["anchors"]["aspect_ratios"] == [list(ratio) for ratio in tiny.aspect_ratios]
    assert values["model"] == json.loads(json.dumps(dataclasses.asdict(tiny)))
