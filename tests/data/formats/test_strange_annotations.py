"""JSON annotations with a value of another type anywhere in them: read, or refused in one line, never a traceback."""

import copy
import functools
import json

import little_formats
import numpy as np
import pytest

from efficientdet.data import recognition, registry, sources
from efficientdet.data.formats import coco
from efficientdet.errors import UserError

_STRANGE = (None, True, -1, 1e400, "", "x", "1_0", [], [[]], {}, {"a": None}, [None], 10**30)
_JSON = {name: value for name, value in little_formats.WRITERS.items() if "CSV" not in name}
_JSON = {name: value for name, value in _JSON.items() if value[0] not in ("voc", "yolo", "cvat", "openimages")}
_CHANGES = 150


def _places(value, path=()):
    """Lists the paths to all values of a document, its own included."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inner for place in _places(one, (*path, key)))]


def _changed(document, path, value):
    """Puts a value in a place of a copy of a document."""
    if not path:
        return value
    document = copy.deepcopy(document)
    target = document
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return document


def _read(format, folder, reading=None):
    read = coco.read if format == "coco" else functools.partial(registry.read, format)
    return read(folder, reading=reading)


@pytest.mark.parametrize("keeps", [False, True], ids=["raised", "kept"])
@pytest.mark.parametrize(("format", "write"), _JSON.values(), ids=_JSON)
def test_a_value_of_another_type_is_one_line(tmp_path, rng, format, write, keeps):
    write(tmp_path)
    path = max((p for p in tmp_path.rglob("*.json*") if p.is_file()), key=lambda p: p.stat().st_size)
    is_lines = path.suffix == ".jsonl"
    lines = path.read_text().splitlines() if is_lines else [path.read_text()]
    document = json.loads(lines[0])
    places = _places(document)
    refusals = []
    for number in rng.permutation(len(places) * len(_STRANGE))[:_CHANGES]:
        place, value = places[number // len(_STRANGE)], _STRANGE[number % len(_STRANGE)]
        text = json.dumps(_changed(document, place, value))
        path.write_text("\n".join([text, *lines[1:]]))
        reading = sources.Reading(faults=sources.Faults(keeps=keeps))
        for attempt in (lambda: recognition.recognize(tmp_path), lambda r=reading: _read(format, tmp_path, r)):
            try:
                attempt()
            except UserError as error:
                refusals.append(str(error))
            except Exception as error:
                raise AssertionError(f"{value!r} in the place of {place}") from error
        refusals += [problem.detail for problem in reading.faults.problems]
    assert refusals
    assert not any("\n" in text for text in refusals)


@pytest.mark.parametrize(("format", "write"), _JSON.values(), ids=_JSON)
def test_a_broken_annotation_leaves_the_others(tmp_path, format, write):
    """`--skip-broken-annotations` and `--dry-run` are for every format; each fault is counted."""
    write(tmp_path)
    before = sum(len(e.labels) for some in _read(format, tmp_path).splits.values() for e in some)
    path = max((p for p in tmp_path.rglob("*.json*") if p.is_file()), key=lambda p: p.stat().st_size)
    text = path.read_text()
    first = text.splitlines()[0] if path.suffix == ".jsonl" else text
    document = json.loads(first)
    # The last number of a box, wherever a format has it.
    numbers = [p for p in _places(document) if p and isinstance(p[-1], int | str) and _is_coordinate(document, p)]
    changed = json.dumps(_changed(document, numbers[-1], "broken"))
    path.write_text(text.replace(first, changed, 1))
    with pytest.raises(UserError, match="broken"):
        _read(format, tmp_path)
    faults = sources.Faults(keeps=True)
    after = _read(format, tmp_path, sources.Reading(faults=faults))
    assert len(faults.problems) == 1
    assert path.name in faults.problems[0].detail
    left = sum(len(e.labels) for some in after.splits.values() for e in some)
    assert before > left >= before - 2
    assert all(np.isfinite(e.boxes).all() for some in after.splits.values() for e in some)


_BOX_FIELDS = {"bbox", "points", "coordinates", "value", "shape_attributes", "label", "exterior", "image"}


def _is_coordinate(document, path):
    """Says whether a place holds a number inside a box or a shape."""
    value = document
    for key in path:
        value = value[key]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return (
        is_number and bool(_BOX_FIELDS & set(map(str, path))) and "rotation" not in path and "original" not in str(path)
    )
