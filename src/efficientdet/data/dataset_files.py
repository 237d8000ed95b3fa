"""Writes the files next to the shards of a converted dataset: dataset.json, conversion.json, splits.json, indexes."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from efficientdet.data import policy, sources, summary
from efficientdet.data.records import shards, store

_DETAILS = "conversion.json"
_SPLITS = "splits.json"


def write_manifest(folder: Path, result: summary.Summary, written: list[shards.Shard]) -> None:
    """Writes the index of each split, conversion.json and dataset.json."""
    splits = {}
    for name, split in result.splits.items():
        own = [shard for shard in written if shard.split == name]
        lengths = [shard.lengths for shard in own]
        store.write_index(
            folder / store.index_name(name),
            np.repeat(np.arange(len(own), dtype=np.int32), [len(values) for values in lengths]),
            np.concatenate([store.locate(values) for values in lengths]),
            np.concatenate(lengths),
        )
        figures = dataclasses.asdict(split)
        files = [{"name": shard.name, "bytes": shard.num_bytes, "sha256": shard.sha256} for shard in own]
        splits[name] = figures | {"shards": files}
    manifest = {
        "version": store.VERSION,
        "format": result.format,
        "source": Path(result.source).name,
        "categories": [dataclasses.asdict(category) for category in result.categories],
        "splits": splits,
        "problems": result.counts(),
    }
    details = {
        "problems": [dataclasses.asdict(problem) for problem in result.problems],
        "unused": [dataclasses.asdict(problem) for problem in result.account.unused],
    }
    for name, document in ((_DETAILS, details), (store.MANIFEST, manifest)):
        (folder / name).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_splits(folder: Path, dataset: sources.Source, result: summary.Summary) -> None:
    """Writes splits.json, the file names of the images in each split; broken images are omitted."""
    broken = {(problem.split, problem.file_name) for problem in result.problems if problem.kind == policy.BROKEN}
    names = {
        split: sorted(example.file_name for example in examples if (split, example.file_name) not in broken)
        for split, examples in dataset.splits.items()
    }
    text = json.dumps(names, indent=0, ensure_ascii=False) + "\n"
    (folder / _SPLITS).write_text(text, encoding="utf-8")
