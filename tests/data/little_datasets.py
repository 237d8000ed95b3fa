"""Small datasets on disk, one writer a format; each has two images of 40 x 60 px with two boxes of two classes."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
HEIGHT, WIDTH = 40, 60


def draw(path: Path, size: tuple[int, int] = (HEIGHT, WIDTH), seed: int = 0, **options) -> Path:
    """Writes an image of noise; `size` is (height, width)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def names(folder: Path) -> list[str]:
    """Lists what is in a folder."""
    return sorted(path.name for path in folder.iterdir())


def coco_document() -> dict:
    """Gives annotations of `a.jpg` (id 7: a cat, a crowd of dogs) and `b.jpg` (id 3: nothing)."""
    common = {"image_id": 7, "iscrowd": 0}
    return {
        "images": [
            {"id": 7, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH},
            {"id": 3, "file_name": "b.jpg", "height": HEIGHT, "width": WIDTH},
        ],
        "annotations": [
            common | {"id": 1, "category_id": 90, "bbox": [10, 5, 20, 30], "area": 123.5},
            common | {"id": 2, "category_id": 2, "bbox": [0, 0, 60, 40], "area": 2000, "iscrowd": 1},
        ],
        "categories": [{"id": 90, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


def write_coco(root: Path, document: dict | None = None) -> Path:
    """Writes instances.json and images/."""
    for seed, name in enumerate(("a.jpg", "b.jpg")):
        draw(root / "images" / name, seed=seed)
    (root / "instances.json").write_text(json.dumps(document or coco_document()))
    return root


def voc_object(name: str, box: tuple[object, ...], extra: str = "") -> str:
    """Writes one <object>; the box is xmin, ymin, xmax, ymax."""
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>"


def write_voc_file(root: Path, stem: str, objects: str, size: tuple[int, int] = (HEIGHT, WIDTH)) -> None:
    """Writes Annotations/<stem>.xml and its image of 40 x 60 px; `size` is what the annotation declares."""
    draw(root / "JPEGImages" / f"{stem}.jpg")
    declared = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    path = root / "Annotations" / f"{stem}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation><filename>{stem}.jpg</filename>{declared}{objects}</annotation>")


def write_voc(root: Path) -> Path:
    """Writes `a` (a cat and a difficult dog) in train and `b` (a dog) in val."""
    write_voc_file(
        root, "a", voc_object("cat", (10, 5, 30, 35)) + voc_object("dog", (1, 2, 3, 4), "<difficult>1</difficult>")
    )
    write_voc_file(root, "b", voc_object("dog", (0, 0, 60, 40)))
    for split, stem in (("train", "a"), ("val", "b"), ("trainval", "a\nb"), ("cat_train", "a 1")):
        path = root / "ImageSets" / "Main" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(stem + "\n")
    return root


def write_yolo(root: Path) -> Path:
    """Writes data.yaml with train (a: a cat, a polygon of a dog) and val (b: no label file)."""
    draw(root / "images" / "train" / "a.jpg")
    draw(root / "images" / "val" / "b.jpg", seed=1)
    (root / "labels" / "train").mkdir(parents=True)
    (root / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.2 0.4\n1 0.1 0.2 0.5 0.2 0.3 0.6\n")
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n")
    return root
