"""Reads CVAT's own annotation format, "CVAT for images 1.1": one XML file for all images of a task or project.

Classes keep CVAT's order, including unused ones. Boxes are rotated about their center by `rotation` degrees, clockwise.
Shapes other than upright boxes are replaced by the boxes around them; points, tags and skeletons are skipped. An
image's subset is its split.
"""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from efficientdet.data.parsing import fields, shapes, xml_files
from efficientdet.data.reading import collection
from efficientdet.errors import UserError

_SHAPES = ("box", "polygon", "polyline", "ellipse", "cuboid", "mask")
_NOT_BOXES = ("points", "tag", "skeleton")
_CUBOID = ("tl1", "bl1", "tr1", "br1", "tl2", "bl2", "tr2", "br2")


def is_document(root: ElementTree.Element) -> bool:
    """Checks whether an XML document is in this format."""
    return root.tag == "annotations" and root.find("image") is not None


def is_video(root: ElementTree.Element) -> bool:
    """Checks whether an XML document is in CVAT's video format, which has no images."""
    return root.tag == "annotations" and root.find("track") is not None


def read(gathered: collection.Collection) -> None:
    """Reads one or several XML files, with images anywhere in the folder; the classes are CVAT's labels."""
    names: dict[str, None] = {}
    for path in gathered.gallery.files(".xml"):
        root = None
        with gathered.attempt(path, lost=0):
            root = xml_files.parse(path)
        if root is None:
            continue
        if is_video(root):
            raise UserError(f"`{path}` is in CVAT's video format; export the task as `CVAT for images 1.1`.")
        if not is_document(root):
            continue
        gathered.mark(path)
        names |= dict.fromkeys(_labels(root))
        for index, element in enumerate(root.findall("image")):
            with gathered.attempt(path):
                _add_image(gathered, path, element, f"`{path}`: image {element.get('id', index)}")
    names |= dict.fromkeys(gathered.class_names())
    gathered.table = dict(enumerate(names, start=1))


def _labels(root: ElementTree.Element) -> list[str]:
    """Lists the labels that the file declares, except those of skeleton points."""
    labels = [label for parent in root.findall("meta/*/labels") for label in parent.findall("label")]
    names = [(label.findtext("name") or "").strip() for label in labels if not label.findtext("parent")]
    return [name for name in names if name]


def _add_image(gathered: collection.Collection, path: Path, element: ElementTree.Element, where: str) -> None:
    """Adds an image and its boxes."""
    name = (element.get("name") or "").strip()
    if not name:
        raise UserError(f"{where}: `name` is missing.")
    height, width = (
        None if element.get(field) is None else fields.parse_number(element.get(field), where, field)
        for field in ("height", "width")
    )
    split = gathered.gallery.image_split(f"{element.get('subset') or ''}/")
    image = gathered.add_image(
        name, file=path, where=where, split=split, size=fields.image_size(height, width, where), is_listing=True
    )
    for index, shape in enumerate(element):
        with gathered.attempt(path):
            _add_shape(gathered, image, shape, f"{where}: <{shape.tag}> {index}")


def _add_shape(
    gathered: collection.Collection, image: collection.Annotated, shape: ElementTree.Element, where: str
) -> None:
    """Adds the box of one shape."""
    if shape.tag in _NOT_BOXES:
        gathered.report(shapes.WITHOUT_AREA, image, detail=shape.tag)
        return
    if shape.tag not in _SHAPES:
        raise UserError(f"{where}: unknown shape; expected {', '.join((*_SHAPES, *_NOT_BOXES))}.")
    name = (shape.get("label") or "").strip()
    if not name:
        raise UserError(f"{where}: `label` is missing.")
    degrees = fields.parse_number(shape.get("rotation", "0"), where, "rotation")
    box = _box(shape, degrees, where)
    if shape.tag in ("box", "mask") and degrees % 360 == 0:
        gathered.add_box(image, box, name, where)
    else:
        gathered.add_outline(image, box, name, where, kind=shapes.ROTATED if shape.tag == "box" else shapes.OUTLINES)


def _box(shape: ElementTree.Element, degrees: float, where: str) -> list[float]:
    """Returns the upright box around a shape: yxyx."""

    def numbers(*names: str) -> list[float]:
        return [fields.parse_number(shape.get(name), where, name) for name in names]

    if shape.tag == "box":
        left, top, right, bottom = numbers("xtl", "ytl", "xbr", "ybr")
        center = ((left + right) / 2, (top + bottom) / 2)
        return shapes.around_rotated((left, top), right - left, bottom - top, degrees, pivot=center)
    if shape.tag == "mask":
        left, top, width, height = numbers("left", "top", "width", "height")
        return [top, left, top + height, left + width]
    if shape.tag == "ellipse":
        x, y, radius_x, radius_y = numbers("cx", "cy", "rx", "ry")
        return shapes.around_ellipse((x, y), (radius_x, radius_y), degrees)
    if shape.tag == "cuboid":
        xs, ys = numbers(*(f"x{corner}" for corner in _CUBOID)), numbers(*(f"y{corner}" for corner in _CUBOID))
        return shapes.around(list(zip(xs, ys, strict=True)))
    points = []
    for text in (shape.get("points") or "").split(";"):
        pair = text.split(",")
        if len(pair) != 2:
            raise UserError(f"{where}: `points` contains {text[:60]!r}; expected pairs `x,y`, separated by `;`.")
        points.append((fields.parse_number(pair[0], where, "points"), fields.parse_number(pair[1], where, "points")))
    return shapes.around(points)
