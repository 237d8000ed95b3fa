"""Writes the detections of many images as pre-labels: annotations to correct by hand in labeling tools.

Each form is a whole dataset, with copies of the images, that `convert` reads back to the same boxes. Boxes are in px of
the upright image, rounded to 0.01 px; 0 is the left or upper edge of the first pixel, in VOC too.

| form | files |
| --- | --- |
| coco | annotations/instances_train.json, images/; each annotation also has a `score` |
| yolo | data.yaml, images/, labels/; classes are numbered from 0 in the network's order |
| voc | Annotations/, JPEGImages/ |
| labelme | a JSON file next to each image |
| csv | annotations.csv next to the images: filename, width, height, class, xmin, ymin, xmax, ymax, score |
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import yaml
from PIL import Image

from efficientdet.errors import UserError
from efficientdet.media import images
from efficientdet.storage import files
from efficientdet.structures import Category

Form = Literal["json", "coco", "yolo", "voc", "labelme", "csv"]
"""What `predict` writes: json draws boxes on images; the others are datasets."""

_Found = Mapping[str, Any]
"""The result of `ImageDetections.to_dict`."""

_FOLDERS = {"coco": "images", "yolo": "images", "voc": "JPEGImages", "labelme": ".", "csv": "."}
_COPIED = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
}  # formats that labeling tools read


def image_path(form: Form, stem: str, source: Path | None) -> Path:
    """Returns the path of the copy of an image, relative to the output folder.

    Args:
        form: format of the annotations.
        stem: stem of its name.
        source: the file to copy. If it is None, or if tools may not read it or show it upright, the copy is a JPEG.
    """
    return Path(_FOLDERS[form]) / f"{stem}{_suffix(source) or '.jpg'}"


def copy_image(source: Path | None, pixels: Any, path: Path) -> None:
    """Writes the copy of an image to the path that `image_path` returned.

    Args:
        source: as in `image_path`.
        pixels: uint8[H, W, 3], used if the file is not copied as it is.
        path: path of the copy.
    """
    if _suffix(source) and source is not None:
        content = images.read_file(source, str(source))
        files.write_bytes(path, content)
    else:
        image = Image.fromarray(pixels)
        files.write_aside(path, lambda temporary: image.save(temporary, quality=95, subsampling=0))


def _suffix(source: Path | None) -> str:
    """Returns the suffix of a file that can be copied as it is, else an empty string."""
    if source is None:
        return ""
    facts = images.inspect(source, str(source))
    fits = source.suffix.lower() in _COPIED.get(facts.format, ())
    return source.suffix.lower() if fits and facts.orientation == 1 and facts.decoded_pixels else ""


def write(form: Form, output: Path, found: Sequence[tuple[str, _Found]], categories: Sequence[Category]) -> list[str]:
    """Writes annotations; replaces those of an earlier call.

    Args:
        form: any but json.
        output: the folder.
        found: for each image, the path of its copy (from `image_path`) and its detections.
        categories: classes of the network.

    Returns:
        Names of the files, relative to the folder.
    """
    writers: dict[str, Callable[..., dict[str, str]]] = {
        "coco": _coco,
        "yolo": _yolo,
        "voc": _voc,
        "labelme": _labelme,
        "csv": _csv,
    }
    texts = writers[form](found, categories)
    for name, text in texts.items():
        files.write_text(output / name, text)
    return list(texts)


def check_names(form: Form, categories: Sequence[Category]) -> None:
    """Raises a UserError if the form cannot distinguish the classes; called before any image is processed."""
    names = [category.name for category in categories]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated and form in ("voc", "labelme", "csv"):
        raise UserError(
            f"`format` is {form}, which identifies classes by name, but two are named `{repeated[0]}`; use coco."
        )


def _coco(found: Sequence[tuple[str, _Found]], categories: Sequence[Category]) -> dict[str, str]:
    annotations: list[dict[str, Any]] = []
    for number, (_, one) in enumerate(found, 1):
        for each in one["detections"]:
            x, y, width, height = _xywh(each["box"])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": each["category_id"],
                    "bbox": [x, y, width, height],
                    "area": round(width * height, 2),
                    "segmentation": [],
                    "iscrowd": 0,
                    "score": each["score"],
                }
            )
    document = {
        "images": [
            {"id": number, "file_name": Path(name).name, "height": one["height"], "width": one["width"]}
            for number, (name, one) in enumerate(found, 1)
        ],
        "annotations": annotations,
        "categories": [{"id": category.id, "name": category.name} for category in categories],
    }
    return {"annotations/instances_train.json": _json(document)}


def _yolo(found: Sequence[tuple[str, _Found]], categories: Sequence[Category]) -> dict[str, str]:
    labels = {category.id: label for label, category in enumerate(categories)}
    table = {
        "path": ".",
        "train": "images",
        "names": {label: category.name for label, category in enumerate(categories)},
    }
    texts = {"data.yaml": yaml.safe_dump(table, sort_keys=False, allow_unicode=True)}
    for name, one in found:
        lines = []
        for each in one["detections"]:
            x, y, width, height = _xywh(each["box"])
            values = (
                (x + width / 2) / one["width"],
                (y + height / 2) / one["height"],
                width / one["width"],
                height / one["height"],
            )
            lines.append(" ".join([str(labels[each["category_id"]]), *(f"{value:.8f}" for value in values)]))
        texts[f"labels/{Path(name).stem}.txt"] = "".join(f"{line}\n" for line in lines)
    return texts


def _voc(found: Sequence[tuple[str, _Found]], _: Sequence[Category]) -> dict[str, str]:
    texts = {}
    for name, one in found:
        root = ElementTree.Element("annotation")
        _add(root, folder=_FOLDERS["voc"], filename=Path(name).name)
        _add(ElementTree.SubElement(root, "size"), width=one["width"], height=one["height"], depth=3)
        _add(root, segmented=0)
        for each in one["detections"]:
            entry = ElementTree.SubElement(root, "object")
            _add(entry, name=each["class"], pose="Unspecified", truncated=0, difficult=0, score=each["score"])
            corners = {f"{side[0]}{end}": each["box"][side] for side, end in _CORNERS}
            _add(ElementTree.SubElement(entry, "bndbox"), **corners)
        ElementTree.indent(root)
        texts[f"Annotations/{Path(name).stem}.xml"] = ElementTree.tostring(root, encoding="unicode") + "\n"
    return texts


_CORNERS = (("x1", "min"), ("y1", "min"), ("x2", "max"), ("y2", "max"))


def _labelme(found: Sequence[tuple[str, _Found]], _: Sequence[Category]) -> dict[str, str]:
    texts = {}
    for name, one in found:
        shapes = [
            {
                "label": each["class"],
                "points": [[each["box"]["x1"], each["box"]["y1"]], [each["box"]["x2"], each["box"]["y2"]]],
                "group_id": None,
                "description": "",
                "shape_type": "rectangle",
                "flags": {},
                "score": each["score"],
            }
            for each in one["detections"]
        ]
        texts[f"{Path(name).stem}.json"] = _json(
            {
                "version": "5.0.0",
                "flags": {},
                "shapes": shapes,
                "imagePath": Path(name).name,
                "imageData": None,
                "imageHeight": one["height"],
                "imageWidth": one["width"],
            }
        )
    return texts


def _csv(found: Sequence[tuple[str, _Found]], _: Sequence[Category]) -> dict[str, str]:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax", "score"])
    for name, one in found:
        for each in one["detections"]:
            corners = [each["box"][side] for side, _ in _CORNERS]
            writer.writerow([Path(name).name, one["width"], one["height"], each["class"], *corners, each["score"]])
    return {"annotations.csv": table.getvalue()}


def _xywh(box: Mapping[str, float]) -> tuple[float, float, float, float]:
    """Converts corners to x, y, width and height, px."""
    return box["x1"], box["y1"], round(box["x2"] - box["x1"], 2), round(box["y2"] - box["y1"], 2)


def _add(parent: ElementTree.Element, **values: Any) -> None:
    for name, value in values.items():
        ElementTree.SubElement(parent, name).text = str(value)


def _json(document: Any) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"
