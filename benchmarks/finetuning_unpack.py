"""Records as the files that other programs read: JPEGs, COCO's annotations, and a backbone under timm's names.

    FOLDER/train/instances.json, FOLDER/train/images/7.jpg, ...     one folder for each split
    FOLDER/backbone.safetensors                                     tensors as timm's `state_dict` has them

Nothing is decoded on the way: the JPEGs are those of the records, byte by byte.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet.checkpoints import backbones, names
from efficientdet.config import ModelConfig
from efficientdet.data.records import store, tfrecord
from efficientdet.model import weights
from efficientdet.storage import files

ANNOTATIONS, IMAGES = "instances.json", "images"
BACKBONE = "backbone.safetensors"


def unpack(source: str, split: str, folder: Path) -> None:
    """Writes the images and annotations of one split.

    Args:
        source: converted dataset.
        split: of it.
        folder: to write into; annotations that are there already are left alone, since they are written last.
    """
    if (folder / ANNOTATIONS).exists():
        return
    opened = store.open_records(source, split)
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(len(opened)):
        record = _read(opened, number)
        image_id = record["id"] if record["id"] >= 0 else number + 1
        image = {key: record[key] for key in ("height", "width")} | {"id": image_id, "file_name": f"{image_id}.jpg"}
        (folder / IMAGES / image["file_name"]).write_bytes(record["encoded"])
        images.append(image)
        for box in _boxes(record):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **box})
    categories = [{"id": category.id, "name": category.name} for category in opened.categories]
    files.write_json(folder / ANNOTATIONS, {"images": images, "annotations": annotations, "categories": categories})


def _read(opened: store.Records, number: int) -> dict[str, Any]:
    """Reads one record: plain numbers, bytes and arrays."""
    with Path(opened.paths[opened.shards[number]]).open("rb") as shard:
        payload = os.pread(shard.fileno(), int(opened.lengths[number]), int(opened.offsets[number]))
    found = {name: value.numpy() for name, value in tfrecord.parse(payload).items()}
    return {name: value.item() if name in ("id", "height", "width") else value for name, value in found.items()}


def _boxes(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Lists the boxes of a record as COCO writes them, px of the image; float64, so that corners do not move."""
    size = np.array([record["height"], record["width"]] * 2, np.float64)
    corners = record["boxes"].astype(np.float64) * size
    sides = np.concatenate([corners[:, 1::-1], corners[:, :1:-1] - corners[:, 1::-1]], axis=1)
    columns = (record["category_ids"], record["is_crowd"], record["area"], sides)
    return [
        {
            "category_id": int(category),
            "iscrowd": int(is_crowd),
            "area": float(area) if area >= 0 else float(box[2] * box[3]),
            "bbox": box.tolist(),
        }
        for category, is_crowd, area, box in zip(*columns, strict=True)
    ]


def write_backbone(source: str, model: ModelConfig, path: Path) -> None:
    """Writes the arrays that our backbone starts from under timm's names, in PyTorch's layouts."""
    arrays = backbones.read_backbone(source, model)
    places = names.variable_sources(model, "timm")
    tensors = {}
    for name, array in arrays.items():
        place = places[name]
        tensors[place.name] = array if place.axes is None else array.transpose(np.argsort(place.axes))
    weights.write_safetensors(path, tensors, {})


def checksum(source: str) -> str:
    """Computes what identifies the images and boxes of a converted dataset: SHA-256 of its shards' checksums."""
    manifest = json.loads((Path(source) / store.MANIFEST).read_text())
    shards = {name: [shard["sha256"] for shard in split["shards"]] for name, split in manifest["splits"].items()}
    return hashlib.sha256(json.dumps(shards, sort_keys=True).encode()).hexdigest()
