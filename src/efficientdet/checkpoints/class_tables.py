"""Class tables: files with class names, one per line or as JSON with COCO's `categories`; and COCO's own table.

COCO's category ids are 1 to 90, of which ten are unused. The published checkpoints have 90 outputs, output l for id
l + 1; those of the ten unused ids were trained to never fire.
"""

import collections
import json
from pathlib import Path

from efficientdet.errors import UserError
from efficientdet.structures import Category

_NAMES = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, -, "
    "stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, -, "
    "backpack, umbrella, -, -, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball "
    "bat, baseball glove, skateboard, surfboard, tennis racket, bottle, -, wine glass, cup, fork, knife, "
    "spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, "
    "couch, potted plant, bed, -, dining table, -, -, toilet, -, tv, laptop, mouse, remote, keyboard, cell "
    "phone, microwave, oven, toaster, sink, refrigerator, -, book, clock, vase, scissors, teddy bear, hair "
    "drier, toothbrush"
)

CATEGORIES: tuple[Category, ...] = tuple(
    Category(id=number, name=f"unused {number}" if name == "-" else name)
    for number, name in enumerate(_NAMES.split(", "), start=1)
)
"""In the order of the published checkpoints' outputs."""


_LARGEST = 1_000_000_000  # bytes; twice the size of COCO's largest annotation file


def read_classes(path: Path) -> tuple[Category, ...]:
    """Reads a class table.

    Args:
        path: a JSON file with `categories` (COCO annotations, or the dataset.json of a converted dataset), the folder
            of a converted dataset, or a text file with one name per line, whose ids are 1, 2, ...

    Returns:
        The classes sorted by id, which is the order of a detector's outputs.

    Raises:
        UserError: the file cannot be read, has no classes, or has a class twice.
    """
    if path.is_dir():
        path = path / "dataset.json"
    try:
        if path.exists() and not path.is_file():  # a device such as /dev/zero has no end
            raise UserError(f"`{path}` is not a file; expected class names.")
        if path.stat().st_size > _LARGEST:
            raise UserError(f"`{path}` has {path.stat().st_size:,} bytes; expected class names.")
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            rows = json.loads(text)["categories"]
            table = [Category(id=int(row["id"]), name=str(row["name"])) for row in rows]
            table.sort(key=lambda category: category.id)  # the order of outputs, whatever the order in the file
        else:
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            table = [Category(id=number, name=name) for number, name in enumerate(lines, start=1)]
    except OSError as error:
        raise UserError(f"`{path}` cannot be read: {error.strerror}; expected class names.") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"`{path}` is not valid UTF-8 text or JSON: {error}.") from error
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"`{path}` has no `categories` list of objects with `id` and `name`.") from error
    if not table:
        raise UserError(f"`{path}` has no class names.")
    for field in ("id", "name"):
        values = [getattr(category, field) for category in table]
        if len(set(values)) < len(values):
            twice = collections.Counter(values).most_common(1)[0][0]
            raise UserError(f"`{path}` lists the class {field} `{twice}` twice.")
    return tuple(table)
