"""Images of 160 x 120 px with a red rectangle at x 40..100, y 30..80, and their boxes in the words of each format."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 160, 120
BOX = (30, 40, 80, 100)
"""The rectangle: yxyx px."""
YOLO = "0.4375 0.458333 0.375 0.416667"
"""The rectangle: centre, width and height, fractions."""
BBOX = [40, 30, 60, 50]
"""The rectangle: x, y, width, height, px."""


def draw(path: Path, orientation: int = 1, size: tuple[int, int] = (WIDTH, HEIGHT), box: tuple = BOX) -> Path:
    """Writes an image; the rectangle is where it says on the upright one, whatever the EXIF orientation."""
    pixels = np.full((size[1], size[0], 3), 90, np.uint8)
    pixels[box[0] : box[2], box[1] : box[3]] = (255, 0, 0)
    undo = {3: [(2, None)], 6: [(1, None)], 8: [(3, None)], 2: [(0, "mirror")]}.get(orientation, [])
    for turns, mirror in undo:
        pixels = pixels[:, ::-1] if mirror else np.rot90(pixels, turns)
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {".png": "PNG", ".avif": "AVIF"}.get(path.suffix.lower(), "JPEG")
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, kind, exif=exif, **options)
    return path


def find_red(jpeg: bytes) -> tuple[int, int, int, int]:
    """Measures where the red is: yxyx px."""
    with Image.open(io.BytesIO(jpeg)) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    ys, xs = np.nonzero((pixels[..., 0] > 180) & (pixels[..., 1] < 90))
    return ys.min(), xs.min(), ys.max() + 1, xs.max() + 1


def write(path: Path, text: str | bytes) -> Path:
    """Writes a text file and the folders around it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def coco(names=("a.jpg",), **changes) -> dict:
    """Gives a COCO document with one annotation an image; `changes` are made to every annotation."""
    images = [{"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT} for i, name in enumerate(names, start=1)]
    annotations = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": BBOX, "area": 3000, "iscrowd": 0} | changes
        for i, _ in enumerate(names, start=1)
    ]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "red"}]}


def write_json(path: Path, document: object) -> Path:
    """Writes a JSON file."""
    return write(path, json.dumps(document))


def xml(name: str = "a.jpg", *, size: str | None = None, head: str = "", box: tuple = (40, 30, 100, 80)) -> str:
    """Gives a VOC annotation; `size` replaces what is inside <size>."""
    size = f"<width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth>" if size is None else size
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return (
        f"{head}<annotation><filename>{name}</filename><size>{size}</size>"
        f"<object><name>red</name><difficult>0</difficult><bndbox>{sides}</bndbox></object></annotation>"
    )
