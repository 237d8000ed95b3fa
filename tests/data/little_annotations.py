"""One image with whatever annotation a test writes for it, and what a reader makes of that."""

import numpy as np
from little_formats import WIDTH, cvat_xml, draw, save

from efficientdet.data import registry


def read(format, root, **options):
    """Reads a dataset: boxes in px of each image, rounded to 0.01, and how often each kind of problem occurred."""
    source = registry.read(format, root, **options)
    boxes = {}
    for split, examples in source.splits.items():
        for example in examples:
            scale = [120, WIDTH, 120, WIDTH] if example.is_normalized else 1
            rows = np.round(example.boxes * scale, 2).tolist()
            names = [source.categories[label].name for label in example.labels]
            boxes[f"{split}:{example.file_name}"] = list(zip(names, map(tuple, rows), strict=True))
    kinds = {}
    for problem in source.problems:
        assert problem.split in source.splits
        kinds[problem.kind] = kinds.get(problem.kind, 0) + problem.count
    return boxes, kinds


def write_cvat(root, text):
    """Writes `a.png` and CVAT's XML with these shapes."""
    draw(root / "a.png")
    save(root / "annotations.xml", cvat_xml(f'<image id="0" name="a.png" width="160" height="120">{text}</image>'))


def write_studio(root, *results, **task):
    """Writes `a.png` and a task of Label Studio's."""
    draw(root / "a.png")
    save(
        root / "tasks.json", [{"id": 5, "data": {"image": "a.png"}, "annotations": [{"result": list(results)}]} | task]
    )


def write_via(root, *shape, attributes=None, **fields):
    """Writes `a.png` and VIA's JSON with these shapes."""
    draw(root / "a.png")
    regions = [
        {"shape_attributes": one, "region_attributes": {"x": "red"} if attributes is None else attributes}
        for one in shape
    ]
    save(root / "via.json", {"a.png1": {"filename": "a.png", "size": 1, "regions": regions} | fields})
