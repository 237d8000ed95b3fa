"""One small dataset, written in every annotation format that is read.

Its images are 160 x 120 px; a pure red rectangle lies at exactly x 40..100, y 30..80, so that a box can be measured.
Who replaces `IMAGES`, the size and `draw` has another dataset written.
"""

import json
import urllib.parse
from pathlib import Path

from PIL import Image, ImageDraw

HEIGHT, WIDTH = 120, 160
RED = (30, 40, 80, 100)
"""The red rectangle, yxyx px."""
BLUE = (6, 4, 22, 24)
GREEN = (90, 110, 118, 158)

IMAGES = {
    "train/a b.png": (("red", RED), ("blue", BLUE)),
    "train/c.png": (("green", GREEN),),
    "val/d.png": (("red", RED),),
}
"""Name below the folder of images -> class and box, yxyx px, of each object."""


def draw(path: Path, objects=IMAGES["val/d.png"], size=(WIDTH, HEIGHT)) -> Path:
    """Writes an image with its rectangles; `size` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, "white")
    for name, (top, left, bottom, right) in objects:
        ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), fill=name)
    image.save(path)
    return path


def draw_all(root: Path, rename=lambda name: name) -> None:
    """Writes all images below a folder."""
    for name, objects in IMAGES.items():
        draw(root / rename(name), objects)


def save(path: Path, content) -> Path:
    """Writes bytes and texts as they are, anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def classes() -> list[str]:
    """Lists the names of the classes in alphabetical order."""
    return sorted({label for objects in IMAGES.values() for label, _ in objects})


def splits() -> list[str]:
    """Lists the splits: train, val, and test if there is one."""
    return list(dict.fromkeys(name.partition("/")[0] for name in IMAGES))


def of_split(split: str):
    """Lists file name and objects of the images of a split."""
    return [(name.partition("/")[2], objects) for name, objects in IMAGES.items() if name.startswith(split)]


def _roboflow(name: str) -> str:
    return name.replace("val/", "valid/")


def _pixels(sides: str, box) -> str:
    """Writes the sides of a box that are named by their first letters, such as "ltrb"."""
    return ",".join(f"{box['tlbr'.index(side)]}" for side in sides)


def write_tensorflow_csv(root: Path) -> None:
    """Writes images/ and a CSV file a split, as the tutorials of the TF Object Detection API do."""
    draw_all(root / "images")
    for split in splits():
        rows = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
        for name, objects in of_split(split):
            rows += [f"{name},{WIDTH},{HEIGHT},{label},{_pixels('ltrb', b)}" for label, b in objects]
        save(root / "data" / f"{split}_labels.csv", "\n".join(rows))


def write_roboflow_csv(root: Path) -> None:
    """Writes `_annotations.csv` beside the images of each split."""
    draw_all(root, _roboflow)
    for split, folder in ((split, {"val": "valid"}.get(split, split)) for split in splits()):
        rows = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
        for name, objects in of_split(split):
            rows += [f"{name},{WIDTH},{HEIGHT},{label},{_pixels('ltrb', b)}" for label, b in objects]
        save(root / folder / "_annotations.csv", "\r\n".join(rows) + "\r\n")


def write_retinanet_csv(root: Path) -> None:
    """Writes keras-retinanet's train.csv, val.csv and classes.csv, with paths of another machine."""
    draw_all(root / "images")
    for split in splits():
        rows = []
        for name, objects in of_split(split):
            path = f"/home/someone/images/{split}/{name}"
            rows += [f"{path},{_pixels('ltrb', b)},{label}" for label, b in objects]
        save(root / f"{split}.csv", "\n".join(rows))
    save(root / "classes.csv", "".join(f"{name},{number}\n" for number, name in enumerate(classes())))


def labelme(name: str, objects, **fields) -> dict:
    """Returns a labelme document."""
    shapes = [
        {"label": label, "shape_type": "rectangle", "points": [[right, bottom], [left, top]], "flags": {}}
        for label, (top, left, bottom, right) in objects
    ]
    size = {"imageHeight": HEIGHT, "imageWidth": WIDTH}
    return {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": name, "imageData": "AAAA"} | size | fields


def write_labelme(root: Path) -> None:
    """Writes a JSON file beside each image."""
    draw_all(root)
    for name, objects in IMAGES.items():
        save((root / name).with_suffix(".json"), labelme(name.rpartition("/")[2], objects))


def cvat_xml(images: str, labels=()) -> str:
    """Returns a document of `CVAT for images 1.1`."""
    names = "".join(f"<label><name>{label}</name></label>" for label in labels or classes())
    meta = f"<meta><task><labels>{names}</labels></task></meta>"
    return f'<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>{meta}{images}</annotations>'


def cvat_box(label: str, box, extra: str = "") -> str:
    """Returns a <box>."""
    top, left, bottom, right = box
    return f'<box label="{label}" occluded="0" xtl="{left}" ytl="{top}" xbr="{right}" ybr="{bottom}" {extra}></box>'


def write_cvat(root: Path) -> None:
    """Writes annotations.xml and images/, each image with its subset."""
    draw_all(root / "images")
    text = ""
    for number, (name, objects) in enumerate(IMAGES.items()):
        split, _, short = name.partition("/")
        boxes = "".join(cvat_box(label, box) for label, box in objects)
        subset = {"train": "Train", "val": "Validation", "test": "Test"}[split]
        text += (
            f'<image id="{number}" name="{short}" subset="{subset}" width="{WIDTH}" height="{HEIGHT}">{boxes}</image>'
        )
    save(root / "annotations.xml", cvat_xml(text))


def write_open_images(root: Path) -> None:
    """Writes a file of boxes a split, and the class descriptions."""
    draw_all(root)
    codes = {name: f"/m/0{name[0]}" for name in classes()}
    for split in splits():
        prefix = {"train": "oidv6-train", "val": "validation"}.get(split, split)
        rows = ["ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction"]
        for name, objects in of_split(split):
            for label, (top, left, bottom, right) in objects:
                sides = f"{left / WIDTH},{right / WIDTH},{top / HEIGHT},{bottom / HEIGHT}"
                rows.append(f"{Path(name).stem},xclick,{codes[label]},1,{sides},0,0,0,0")
        save(root / f"{prefix}-annotations-bbox.csv", "\n".join(rows))
    save(root / "class-descriptions-boxable.csv", "".join(f"{code},{name}\n" for name, code in codes.items()))


def write_createml(root: Path) -> None:
    """Writes Roboflow's `_annotations.createml.json` beside the images of each split."""
    draw_all(root, _roboflow)
    for split, folder in ((split, {"val": "valid"}.get(split, split)) for split in splits()):
        document = []
        for name, objects in of_split(split):
            annotations = []
            for label, (top, left, bottom, right) in objects:
                center = {"x": (left + right) / 2, "y": (top + bottom) / 2}
                annotations.append(
                    {"label": label, "coordinates": center | {"width": right - left, "height": bottom - top}}
                )
            document.append({"image": name, "annotations": annotations})
        save(root / folder / "_annotations.createml.json", document)


def label_studio_region(label: str, box, **value) -> dict:
    """Returns a region of a Label Studio annotation."""
    top, left, bottom, right = box
    across, down = WIDTH / 100, HEIGHT / 100
    percent = {"x": left / across, "y": top / down, "width": (right - left) / across, "height": (bottom - top) / down}
    sides = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    labels = {"rotation": 0, "rectanglelabels": [label]}
    return {"id": "x", "type": "rectanglelabels", "value": percent | labels | value, **sides}


def _uploaded(name: str) -> str:
    """Returns where Label Studio keeps an image; its export has the image with the same prefix."""
    folder, _, short = name.partition("/")
    return f"{folder}/8a5f01c2-{short}"


def write_label_studio(root: Path) -> None:
    """Writes the JSON export: percent, uploaded names in an address."""
    draw_all(root / "images", _uploaded)
    tasks = []
    for number, (name, objects) in enumerate(IMAGES.items(), start=1):
        address = "/data/upload/1/" + urllib.parse.quote(_uploaded(name).partition("/")[2])
        annotation = {"result": [label_studio_region(*one) for one in objects], "was_cancelled": False}
        tasks.append({"id": number, "data": {"image": address}, "annotations": [annotation], "predictions": []})
    save(root / "project-1.json", tasks)


def write_label_studio_min(root: Path) -> None:
    """Writes the JSON-MIN export; the images have their names from before the upload."""
    draw_all(root / "images")
    entries = []
    for number, (name, objects) in enumerate(IMAGES.items(), start=1):
        regions = []
        for one in objects:
            region = label_studio_region(*one)
            regions.append(region.pop("value") | region)
        address = "/data/upload/1/" + _uploaded(name).partition("/")[2].replace(" ", "_")
        entries.append({"image": address, "id": number, "label": regions, "annotator": 1, "annotation_id": number})
    save(root / "project-1-min.json", entries)


def via_region(label: str, box) -> dict:
    """Returns a rectangle of VIA."""
    top, left, bottom, right = box
    shape = {"name": "rect", "x": left, "y": top, "width": right - left, "height": bottom - top}
    return {"shape_attributes": shape, "region_attributes": {"type": label}}


def write_via(root: Path) -> None:
    """Writes `via_region_data.json` beside the images of each split."""
    draw_all(root)
    for split in splits():
        entries = {
            f"{name}123": {"filename": name, "size": 123, "regions": [via_region(*o) for o in objects]}
            for name, objects in of_split(split)
        }
        save(root / split / "via_region_data.json", entries)


def write_via_csv(root: Path) -> None:
    """Writes a CSV export beside the images of each split."""
    draw_all(root)
    for split in splits():
        rows = ["filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"]
        for name, objects in of_split(split):
            for number, one in enumerate(objects):
                region = via_region(*one)
                cells = (json.dumps(region[f]).replace('"', '""') for f in ("shape_attributes", "region_attributes"))
                rows.append(f'{name},123,"{{}}",{len(objects)},{number},' + ",".join(f'"{cell}"' for cell in cells))
        save(root / split / "via_export_csv.csv", "\n".join(rows))


def write_supervisely(root: Path) -> None:
    """Writes a project with a dataset a split."""
    for name, objects in IMAGES.items():
        split, _, short = name.partition("/")
        draw(root / split / "img" / short, objects)
        entries = [
            {"classTitle": label, "geometryType": "rectangle", "points": {"exterior": [[b[1], b[0]], [b[3], b[2]]]}}
            for label, b in objects
        ]
        document = {"description": "", "tags": [], "size": {"height": HEIGHT, "width": WIDTH}, "objects": entries}
        save(root / split / "ann" / f"{short}.json", document)
    save(root / "meta.json", {"classes": [{"title": title} for title in classes()], "tags": []})


def _xywh(box) -> list[int]:
    return [box[1], box[0], box[3] - box[1], box[2] - box[0]]


def write_image_folder(root: Path) -> None:
    """Writes `metadata.jsonl` beside the images of each split."""
    draw_all(root)
    for split in splits():
        rows = [
            {"file_name": n, "objects": {"bbox": [_xywh(b) for _, b in objects], "categories": [c for c, _ in objects]}}
            for n, objects in of_split(split)
        ]
        save(root / split / "metadata.jsonl", "\n".join(json.dumps(row) for row in rows))


def write_image_folder_csv(root: Path) -> None:
    """Writes `metadata.csv` beside the images of each split."""
    draw_all(root)
    for split in splits():
        rows = ["file_name,objects"]
        for name, objects in of_split(split):
            value = {"bbox": [_xywh(b) for _, b in objects], "categories": [c for c, _ in objects]}
            rows.append('{},"{}"'.format(name, json.dumps(value).replace('"', '""')))
        save(root / split / "metadata.csv", "\n".join(rows))


def write_coco(root: Path) -> None:
    """Writes annotations/instances_<split>.json and the images of each split."""
    draw_all(root)
    ids = {name: number for number, name in enumerate(classes(), start=1)}
    for split in splits():
        listed = of_split(split)
        save(
            root / "annotations" / f"instances_{split}.json",
            {
                "images": [
                    {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH}
                    for number, (name, _) in enumerate(listed)
                ],
                "annotations": [
                    {"id": 1000 * number + k, "image_id": number, "category_id": ids[label], "bbox": _xywh(box)}
                    for number, (_, objects) in enumerate(listed)
                    for k, (label, box) in enumerate(objects)
                ],
                "categories": [{"id": number, "name": name} for name, number in ids.items()],
            },
        )


def write_voc(root: Path) -> None:
    """Writes Annotations/, JPEGImages/ and ImageSets/Main/."""
    for name, objects in IMAGES.items():
        split, _, short = name.partition("/")
        draw(root / "JPEGImages" / short, objects)
        text = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{b[1]}</xmin><ymin>{b[0]}</ymin><xmax>{b[3]}</xmax>"
            f"<ymax>{b[2]}</ymax></bndbox></object>"
            for label, b in objects
        )
        stem = Path(short).stem
        save(root / "Annotations" / f"{stem}.xml", f"<annotation><filename>{short}</filename>{text}</annotation>")
        path = root / "ImageSets" / "Main" / f"{split}.txt"
        save(path, (path.read_text() if path.exists() else "") + f"{stem}\n")


def write_yolo(root: Path) -> None:
    """Writes data.yaml, images/ and labels/."""
    draw_all(root / "images")
    for name, objects in IMAGES.items():
        rows = [
            f"{classes().index(label)} {(b[1] + b[3]) / 2 / WIDTH} {(b[0] + b[2]) / 2 / HEIGHT} "
            f"{(b[3] - b[1]) / WIDTH} {(b[2] - b[0]) / HEIGHT}"
            for label, b in objects
        ]
        save((root / "labels" / name).with_suffix(".txt"), "\n".join(rows))
    save(
        root / "data.yaml",
        "".join(f"{split}: images/{split}\n" for split in splits()) + f"names: [{', '.join(classes())}]\n",
    )


WRITERS = {
    "COCO": ("coco", write_coco),
    "Pascal VOC": ("voc", write_voc),
    "YOLO": ("yolo", write_yolo),
    "TensorFlow CSV": ("csv", write_tensorflow_csv),
    "Roboflow CSV": ("csv", write_roboflow_csv),
    "keras-retinanet CSV": ("csv", write_retinanet_csv),
    "labelme": ("labelme", write_labelme),
    "CVAT": ("cvat", write_cvat),
    "Open Images": ("openimages", write_open_images),
    "Create ML": ("createml", write_createml),
    "Label Studio": ("labelstudio", write_label_studio),
    "Label Studio JSON-MIN": ("labelstudio", write_label_studio_min),
    "VIA": ("via", write_via),
    "VIA CSV": ("via", write_via_csv),
    "Supervisely": ("supervisely", write_supervisely),
    "imagefolder": ("imagefolder", write_image_folder),
    "imagefolder CSV": ("imagefolder", write_image_folder_csv),
}
"""What docs/data.md calls a way to export -> the format's name, and who writes the dataset so."""
