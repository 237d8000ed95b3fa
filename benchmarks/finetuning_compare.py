"""Does fine-tuning here give better detectors, sooner, than PyTorch's effdet? Both train on the same images.

    python benchmarks/finetuning_compare.py records/ --output benchmarks/results/finetuning-NAME.json

`records/` is a converted dataset (`efficientdet convert`) with the splits train and val, and test if there is one; then
AP is of test and val only serves to choose effdet's learning rate. `make bench-finetune RECORDS=records/` sets up both
environments first.

The same: images and splits, size of the network input, batch, number of steps, backbone (a check compares what both
make of an image), and who counts AP: `efficientdet.CocoEvaluator`, in px of the original images. Each its own: the rest
of the initial weights, augmentation, targets, losses, optimiser, schedule, averages, suppression. Ours is what
docs/training.md recommends for a few hundred images; effdet is what its script does (finetuning_effdet.py), with the
best of three learning rates. finetuning_plan.py says which trainings that takes.

Each training is a process of its own, ours and effdet's in turns, and is in the result file as soon as it is done: the
same command goes on where it was stopped. A training that was stopped midway begins again, so that its time is whole.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import finetuning_plan
import finetuning_unpack
import numpy as np
import tyro
from finetuning_plan import Options, Run

from efficientdet import backend, presets
from efficientdet.benchmarks import report
from efficientdet.data.records import store
from efficientdet.errors import UserError
from efficientdet.evaluation import measuring
from efficientdet.storage import files
from efficientdet.training import schedule

_HERE = Path(__file__).parent
_DEFAULT_RATE = 0.01
_LARGEST_DIFFERENCE = 1e-4
"""Between the backbones' features, of the largest one: float32 through 16 blocks, in two libraries."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What both trainings have in common; the result file keeps it, and is continued only with the same."""

    preset: str
    backbone: str
    image_size: tuple[int, int]
    batch_size: int
    steps: int
    warm_steps: int
    workers: int


def main(
    source: Path,
    /,
    *,
    output: Path,
    preset: str = "lite0",
    backbone: str = "imagenet",
    image_size: tuple[int, int] = (320, 320),
    batch_size: int = 8,
    steps: int = 400,
    rates: tuple[float, ...] = (),
    seeds: tuple[int, ...] = (0, 1, 2),
    ablation_seeds: tuple[int, ...] = (0,),
    our_scales: tuple[float, float] = (0.5, 1.5),
    effdet_scales: tuple[float, float] = (0.1, 2.0),
    only: tuple[str, ...] = (),
    most_runs: int = 0,
    workers: int = 2,
    effdet_python: Path = Path(".venv-parity/bin/python"),
    work: Path | None = None,
) -> None:
    """Trains what is missing in the result file, and writes the comparison.

    Args:
        source: converted dataset.
        output: JSON file to write, or to go on with.
        preset: model, d0 to d7x or lite0 to lite4.
        backbone: what both start from: `imagenet` or a file.
        image_size: height and width of the network input, px.
        batch_size: images a step.
        steps: of each training.
        rates: peaks of effdet's learning rate; empty: 0.01, the default of its script, and twice and
            four times what ours derives for SGD.
        seeds: of the comparison.
        ablation_seeds: of the trainings that only explain it; none: leave them out.
        our_scales: smallest and largest scale of a training image, of its fit into the input.
        effdet_scales: the same for effdet; those that its script has.
        only: of ours, effdet, ours-sgd, effdet-adam, ours-scales and effdet-scales; empty: all.
        most_runs: stop after so many trainings; 0: when all are done.
        workers: processes that load effdet's images.
        effdet_python: Python of an environment that has effdet.
        work: folder for what the trainings write; none: a temporary one.
    """
    unknown = sorted(set(only) - set(finetuning_plan.RECIPES))
    if unknown:
        raise UserError(f"`only` is {unknown[0]}; choose from {', '.join(finetuning_plan.RECIPES)}.")
    backend.choose()
    splits = store.split_names(source)
    if missing := sorted({"train", "val"} - set(splits)):
        raise UserError(f"`{source}` has no split `{missing[0]}`; convert it with `--val-fraction`.")
    our_rate = round(schedule.peak_rate(batch_size, steps), 4)
    options = Options(
        rates=rates or (_DEFAULT_RATE, 2 * our_rate, 4 * our_rate),
        adam_rate=round(schedule.adam_rate(batch_size, has_backbone=True), 4),
        seeds=seeds,
        ablation_seeds=ablation_seeds,
        our_scales=our_scales,
        effdet_scales=effdet_scales,
        selection="val",
        test="test" if "test" in splits else "val",
        only=only,
    )
    settings = Settings(
        preset=preset,
        backbone=backbone,
        image_size=image_size,
        batch_size=batch_size,
        steps=steps,
        warm_steps=max(min(10, steps // 4), 1),
        workers=workers,
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = work or Path(temporary)
        Comparison(source, output, options, settings, folder, effdet_python).go(most_runs)


class Comparison:
    """The result file, and the trainings that fill it."""

    def __init__(self, source: Path, output: Path, options: Options, settings: Settings, work: Path, python: Path):
        """Unpacks the dataset and opens the result file, new or begun.

        Args:
            source: converted dataset.
            output: result file.
            options: what is compared.
            settings: what both have in common.
            work: folder to write into.
            python: of effdet's environment.
        """
        self._source, self._output, self._work, self._python = source, output, work, python
        self._options, self._settings = options, settings
        self._model = presets.find_preset(settings.preset).model
        self._data = work / "data"
        for split in dict.fromkeys(("train", options.selection, options.test)):
            finetuning_unpack.unpack(str(source), split, self._data / split)
        finetuning_unpack.write_backbone(settings.backbone, self._model, self._data / finetuning_unpack.BACKBONE)
        self._facts = {
            "what": "fine-tuning from an ImageNet backbone: AP and speed beside PyTorch's effdet",
            "dataset": self._dataset(),
            "settings": {**dataclasses.asdict(settings), **dataclasses.asdict(options)},
        }
        self._facts["settings"].pop("only")
        self._facts = json.loads(json.dumps(self._facts))
        self._found = resume(output, self._facts)

    def _dataset(self) -> dict[str, Any]:
        """Says what is trained and compared on."""
        opened = {name: store.open_records(str(self._source), name) for name in store.split_names(self._source)}
        return {
            "name": self._source.name,
            "checksum": finetuning_unpack.checksum(str(self._source)),
            "classes": len(opened["train"].categories),
            "images": {name: len(each) for name, each in opened.items()},
            "boxes": {name: each.num_boxes for name, each in opened.items()},
        }

    def go(self, most_runs: int) -> None:
        """Makes the trainings that are missing, `most_runs` at most if that is not 0."""
        if "backbone_difference" not in self._found:
            self._found["backbone_difference"] = self._compare_backbones()
            self._write()
        count = 0
        while missing := [run for run in self._plan() if run.name not in self._found["runs"]]:
            if most_runs and count == most_runs:
                break
            run, count = missing[0], count + 1
            print(f"{run.name}: {len(missing)} of {len(self._plan())} trainings to go", flush=True)
            self._found["runs"][run.name] = self._train_ours(run) if run.is_ours else self._train_effdet(run)
            self._write()
        summary = finetuning_plan.summarize(self._options, self._found["runs"])
        print(json.dumps({name: value for name, value in summary.items() if name != "rows"}, indent=1))

    def _plan(self) -> list[Run]:
        return finetuning_plan.plan(self._options, self._found["runs"])

    def _write(self) -> None:
        """Writes the result file."""
        summary = finetuning_plan.summarize(self._options, self._found["runs"])
        files.write_json(self._output, {**self._facts, **summary, **self._found, **report.circumstances()})

    def _train_ours(self, run: Run) -> dict[str, Any]:
        """Makes one of our trainings."""
        job = {
            **self._common(run),
            "records": str(self._source),
            "preset": self._settings.preset,
            "backbone": self._settings.backbone,
            "run_dir": self._fresh(run),
            "num_examples": self._facts["dataset"]["images"]["train"],
            "split": self._options.test,
        }
        return self._call(Path(sys.executable), "finetuning_ours.py", "train", job)

    def _train_effdet(self, run: Run) -> dict[str, Any]:
        """Makes one of effdet's trainings; what it detects is counted here."""
        found = self._call(
            self._python,
            "finetuning_effdet.py",
            "train",
            {
                **self._common(run),
                "data": str(self._data),
                "model": self._effdet_model(),
                # COCO's ids, 1 to 90 with holes, are effdet's labels.
                "num_classes": max(category.id for category in self._categories()),
                "splits": list(dict.fromkeys((self._options.selection, self._options.test))),
                "output": self._fresh(run),
                "workers": self._settings.workers,
                "tries_soft": run.recipe == finetuning_plan.EFFDET and run.seed == self._options.seeds[-1],
            },
        )
        self._found["rival"] = found.pop("versions")
        counted = {
            name: {split: self._count(Path(path), split) for split, path in paths.items()}
            for name, paths in found.pop("detections").items()
        }
        return {**found, "AP": counted}

    def _count(self, detections: Path, split: str) -> dict[str, float | None]:
        """Counts AP and AP50 of a file of detections."""
        metrics = measuring.evaluate(detections, data=str(self._source), split=split).metrics
        return {name: metrics[name] for name in ("AP", "AP50")}

    def _common(self, run: Run) -> dict[str, Any]:
        """Lists what both trainings are told."""
        names = ("image_size", "batch_size", "steps", "warm_steps")
        settings = {name: getattr(self._settings, name) for name in names}
        return {**settings, "rate": run.rate, "method": run.method, "scales": run.scales, "seed": run.seed}

    def _fresh(self, run: Run) -> str:
        """Names a folder for a training that nothing was written into before."""
        return tempfile.mkdtemp(prefix=f"{run.name}-", dir=self._work)

    def _categories(self) -> Any:
        return store.open_records(str(self._source), "train").categories

    def _effdet_model(self) -> str:
        """Names effdet's model: the one with TensorFlow's padding is the same network as ours (docs/parity.md)."""
        return f"tf_efficientdet_{self._settings.preset}"

    def _compare_backbones(self) -> float:
        """Compares the features of both backbones before training; returns the largest difference, of the largest one.

        Raises:
            UserError: they do not start from the same weights.
        """
        image = self._work / "image.npy"
        np.save(image, np.random.default_rng(0).normal(size=(1, 3, *self._settings.image_size)).astype(np.float32))
        ours, theirs = (self._work / f"features-{name}.npz" for name in ("ours", "effdet"))
        start = {"preset": self._settings.preset, "backbone": self._settings.backbone}
        job = {"image": str(image), "output": str(ours), **start}
        self._call(Path(sys.executable), "finetuning_ours.py", "features", job)
        job = {"image": str(image), "output": str(theirs), "model": self._effdet_model(), "data": str(self._data)}
        self._call(self._python, "finetuning_effdet.py", "features", job)
        difference = largest_difference(dict(np.load(ours)), dict(np.load(theirs)))
        if difference > _LARGEST_DIFFERENCE:
            raise UserError(
                f"The two backbones differ by {difference:.1e} of their largest feature; expected at most "
                f"{_LARGEST_DIFFERENCE:.0e}, so they do not start from the same weights."
            )
        return difference

    def _call(self, python: Path, script: str, task: str, job: dict[str, Any]) -> dict[str, Any]:
        """Lets a process of its own do a job, and reads what it found.

        Raises:
            UserError: it cannot be started, or fails.
        """
        asked, answer = self._work / "job.json", self._work / "result.json"
        answer.unlink(missing_ok=True)
        files.write_json(asked, {"task": task, **job})
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        load = os.getloadavg()[0]
        command = [str(python), str(_HERE / script), str(asked), str(answer)]
        try:
            status = subprocess.run(command, env=environment, check=False, stdin=subprocess.DEVNULL).returncode
        except OSError as error:
            raise UserError(
                f"`{python}` cannot be started: {error.strerror}; `make VENV=.venv-parity environment` makes it."
            ) from error
        if status or not answer.is_file():
            raise UserError(
                f"`{script}` failed with status {status} for the reason above; run the same command to resume."
            )
        return {**json.loads(answer.read_text()), "load_before": round(load, 2)}


def resume(output: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Reads the runs of a result file that was begun.

    Args:
        output: the file.
        facts: what it must have been begun with; seeds may be added.

    Returns:
        `runs`, and what else is kept from run to run.

    Raises:
        UserError: it was begun with other settings or data.
    """
    if not output.exists():
        return {"runs": {}}
    begun = json.loads(output.read_text())
    free = ("seeds", "ablation_seeds", "workers")
    for section in ("dataset", "settings"):
        for name, value in facts[section].items():
            if name not in free and begun.get(section, {}).get(name) != value:
                before = begun.get(section, {}).get(name)
                raise UserError(
                    f"`output` {output} was begun with `{name}` {before}, now it is {value}; name another file."
                )
    return {name: begun[name] for name in ("runs", "backbone_difference", "rival") if name in begun}


def largest_difference(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """Computes the largest difference of two sets of arrays over the largest value of each array."""
    assert ours.keys() == theirs.keys(), (ours.keys(), theirs.keys())
    return max(float(np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max()) for name in ours)


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except UserError as error:
        sys.exit(f"error: {error}")
