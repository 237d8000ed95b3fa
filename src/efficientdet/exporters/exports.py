"""Exports weights: writes a temporary export, runs it, compares it with Keras, and only then moves it into place."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from efficientdet import config as configs
from efficientdet import errors, progress
from efficientdet.checkpoints import pretrained
from efficientdet.config import Answer, ExportFormat, ExportPrecision
from efficientdet.errors import UsageError, UserError
from efficientdet.exporters import gate as gates
from efficientdet.exporters import verification
from efficientdet.formats import calibration, loading
from efficientdet.formats import keras as keras_runtime
from efficientdet.formats import manifest as manifests
from efficientdet.model import weights as weight_files
from efficientdet.result import Result
from efficientdet.storage import files

PRECISIONS: dict[ExportFormat, tuple[ExportPrecision, ...]] = {
    "saved_model": ("float32", "float16", "bfloat16"),
    "onnx": ("float32", "float16", "int8"),
    "litert": ("float32", "float16", "int8"),
    "openvino": ("float32", "float16", "int8"),
}
"""Precisions that each format supports."""

_FORMATS = f"{{{','.join(get_args(ExportFormat))}}}"
_RAW_ONLY: dict[ExportFormat, tuple[ExportPrecision, ...]] = {
    "saved_model": (),
    "onnx": ("float16", "int8"),
    "litert": ("int8",),
    "openvino": ("int8",),
}
_GENERATED = 8  # images
_MOST_IMAGES = 64  # images of a folder
_MOST_SAMPLES = 16  # calibration images used for the comparison


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(Result):
    """An export, and how closely it matches Keras."""

    path: str
    format: ExportFormat
    precision: ExportPrecision
    answer: Answer
    num_bytes: int
    """Total size of its files."""
    agreement: dict[str, Any]
    """Results of the comparison (`verification.Agreement`); for int8 also the AP of both."""

    def text(self) -> str:
        """Summarizes where the export is and how closely it matches Keras."""
        found = self.agreement
        what = f"{self.path}: {self.format}, {self.precision}, {files.size_text(self.num_bytes)}; "
        if "ap" in found:
            return what + f"AP {100 * found['ap']:.1f}, Keras {100 * found['keras_ap']:.1f}"
        return what + (
            f"{found['detections']} detections on {found['images']} images differ from Keras by at most "
            f"{found['score_difference']:.1e} in score and {found['box_difference']:.2g} px, {found['apart']} by more; "
            f"{found['extra']} exist only in the export"
        )


def export(
    weights: Path,
    /,
    *,
    format: Annotated[
        ExportFormat | None, tyro.conf.arg(metavar=_FORMATS, help_behavior_hint="(required, except with --verify)")
    ] = None,
    output: Path | None = None,
    precision: ExportPrecision = "float32",
    answer: Literal["auto", "raw", "detections"] = "auto",
    letterbox: Literal["excluded", "included"] = "excluded",
    batch_size: int = 0,
    image_size: tuple[int, int] | None = None,
    images: Path | None = None,
    calibration: str = "",
    calibration_images: int = 200,
    data: str = "",
    split: str = "val",
    max_ap_loss: float = 0.01,
    verify: Path | None = None,
) -> Export:
    """Exports a model to another runtime, runs it there, and compares its results with Keras.

    Exports that disagree with Keras are rejected. `Detector`, `predict` and `evaluate` accept the folder of an export
    instead of weights.

    Args:
        weights: weights file, run folder (uses its best weights), or published name such as coco-d0.
        format: saved_model (TensorFlow, TensorFlow Serving), onnx, litert (TensorFlow Lite) or openvino.
        output: folder of the export; default: `exports/FORMAT-PRECISION`. An earlier export there is overwritten.
        precision: float32; float16; bfloat16 (saved_model); int8 (onnx, litert, openvino).
        answer: output of the graph: detections, or raw predictions for suppression on the host. auto: detections for
            saved_model, else raw.
        letterbox: included: a saved_model also accepts image files and images of any size.
        batch_size: images per call; 0: any number.
        image_size: height and width of the network input, px; default: what the weights were trained with.
        images: folder of photographs to compare on (the first 64); default: generated images.
        calibration: for int8: folder of images, or records (their train split); default: those of `data`.
        calibration_images: number of calibration images.
        data: for int8: records on which the AP of Keras and of the export is measured.
        split: split of those records.
        max_ap_loss: for int8: reject the export if it loses more AP than this (a fraction; 0.01 is one point).
        verify: folder of an export of these weights; compare it again, on `images` or `data`, instead of writing one.

    Raises:
        UserError: a runtime is not installed, weights or images cannot be used, the format doesn't support the
            precision or answer, the export disagrees with Keras, or `verify` is damaged or from another model.
    """
    if verify is not None:
        written = {"format": format, "output": output, "precision": precision, "answer": answer, "letterbox": letterbox}
        shape = {"batch_size": batch_size, "image_size": image_size}
        samples_of = {"calibration": calibration, "calibration_images": calibration_images}
        errors.refuse(export, {**written, **shape, **samples_of}, "`verify` only compares an existing export")
        return _verify_again(weights, verify, images, data=data, split=split, max_ap_loss=max_ap_loss)
    if format is None:
        raise UsageError(f"`format` is missing; choose from {', '.join(PRECISIONS)}.")
    target = output if output is not None else Path("exports") / f"{format}-{precision}"
    chosen: Answer = answer if answer != "auto" else "detections" if format == "saved_model" else "raw"
    _check(format, precision, chosen, letterbox, batch_size, data)
    _check_place(target)
    require(format, precision)
    loaded = weight_files.load(pretrained.find_weights(weights))
    model = dataclasses.replace(loaded.model, image_size=image_size or loaded.model.image_size)
    configs.check_image_size(model, "image_size")
    manifest = manifests.Manifest(
        target=format,
        precision=precision,
        answer=chosen,
        batch_size=batch_size,
        has_letterbox=letterbox == "included",
        model=model,
        categories=loaded.categories,
        postprocess=loaded.postprocess,
    )
    shown = _shown(manifest, images)
    samples = _samples(manifest, calibration or (data if precision == "int8" else ""), calibration_images)
    keras = keras_runtime.KerasRuntime(loaded, postprocess=manifest.postprocess, image_size=model.image_size)
    gate = gates.find_gate(precision, keras, data=data, split=split, max_ap_loss=max_ap_loss)
    with files.explained(target), files.folder_aside(target) as folder:
        progress.console.print(f"export: writing {format}, {precision}", markup=False)
        _write(folder, loaded, manifest, samples)
        manifest = manifests.write(folder, manifest)
        found = _verify(loaded, keras, folder, [*shown, *samples[:_MOST_SAMPLES]], gate)
        manifests.write(folder, dataclasses.replace(manifest, agreement=found))
    return _result(target, manifest, found)


def _verify_again(
    weights: Path, verify: Path, images: Path | None, *, data: str, split: str, max_ap_loss: float
) -> Export:
    """Compares an existing export with the weights it was made from."""
    folder, manifest = manifests.read(verify)
    loaded = weight_files.load(pretrained.find_weights(weights))
    if dataclasses.replace(manifest.model, image_size=loaded.model.image_size) != loaded.model:
        raise UserError(f"`{verify}` is an export of a different model ({manifest.model.name}) than `{weights}`.")
    keras = keras_runtime.KerasRuntime(loaded, postprocess=manifest.postprocess, image_size=manifest.model.image_size)
    gate = gates.find_gate(manifest.precision, keras, data=data, split=split, max_ap_loss=max_ap_loss)
    found = _verify(loaded, keras, folder, _shown(manifest, images), gate)
    return _result(folder, manifest, found)


def require(format: ExportFormat, precision: ExportPrecision = "float32") -> None:
    """Raises a UserError if the packages that write and run a format are not installed."""
    if format == "onnx":
        from efficientdet.formats import onnx

        onnx.require()
    elif format == "litert":
        from efficientdet.formats import litert

        litert.require()
    elif format == "openvino":
        from efficientdet.formats import openvino

        openvino.import_openvino()
        if precision == "int8":
            openvino.require_nncf()


def _check(format: ExportFormat, precision: str, answer: Answer, letterbox: str, batch_size: int, data: str) -> None:
    """Raises a UserError for options that are not valid together."""
    if format not in PRECISIONS:
        raise UserError(f"`format` is {format!r}; choose from {', '.join(PRECISIONS)}.")
    if precision not in PRECISIONS[format]:
        raise UserError(f"`precision` is {precision}; for {format}, choose from {', '.join(PRECISIONS[format])}.")
    if answer == "detections" and precision in _RAW_ONLY[format]:
        raise UserError(f"`answer` is detections, but {format} in {precision} supports only raw.")
    if letterbox == "included" and (format, answer) != ("saved_model", "detections"):
        raise UserError("`letterbox` is included, which is supported only by a saved_model with detections.")
    if not 0 <= batch_size <= manifests.LARGEST_BATCH:
        raise UserError(f"`batch_size` is {batch_size}; it must be 0 (any number) to {manifests.LARGEST_BATCH}.")
    if precision == "int8" and not data:
        raise UserError(
            "`precision` is int8, which needs labeled records to measure AP; pass `--data RECORDS --split val`."
        )


def _check_place(target: Path) -> None:
    """Raises a UserError if a folder cannot be written, or contains anything but an export."""
    if files.is_filled(target) and not (target / manifests.FILE).is_file():
        raise UserError(f"`output` is `{target}`, which contains files that are not an export; use another folder.")
    files.check_writable(target / manifests.FILE)


def _shown(manifest: manifests.Manifest, images: Path | None) -> list[calibration.Sample]:
    """Returns the images to compare on."""
    if images is None:
        return list(calibration.generated(manifest.model, _GENERATED))
    return calibration.from_folder(images, manifest.model, _MOST_IMAGES, "images")


def _samples(manifest: manifests.Manifest, location: str, count: int) -> list[calibration.Sample]:
    """Returns the calibration images, or an empty list without a location."""
    if not location:
        return []
    if count < 1:
        raise UserError(f"`calibration_images` is {count}; it must be at least 1.")
    return calibration.find(location, manifest.model, manifest.categories, count)


def _write(
    folder: Path, loaded: weight_files.Weights, manifest: manifests.Manifest, samples: list[calibration.Sample]
) -> None:
    """Writes the files of a format."""
    if manifest.target == "saved_model":
        from efficientdet.formats import saved_model

        saved_model.write(folder, loaded, manifest)
    elif manifest.target == "onnx":
        from efficientdet.formats import onnx

        onnx.write(folder, loaded, manifest, samples)
    elif manifest.target == "litert":
        from efficientdet.formats import litert

        litert.write(folder, loaded, manifest, samples)
    else:
        from efficientdet.formats import openvino

        openvino.write(folder, loaded, manifest, samples)


def _verify(
    loaded: weight_files.Weights,
    keras: keras_runtime.KerasRuntime,
    folder: Path,
    samples: list[calibration.Sample],
    gate: gates.Gate | None,
) -> dict[str, Any]:
    """Runs an export and compares it with Keras.

    Raises:
        UserError: it disagrees with Keras.
    """
    _, manifest = manifests.read(folder)
    ours = loading.load_runtime(folder)
    bounds = verification.LIMITS[manifest.precision if manifest.precision != "int8" else "bfloat16"]
    compared = verification.compare(ours, keras, samples, bounds, has_raw=manifest.answer == "raw")
    found = compared.to_dict()
    if manifest.has_letterbox:
        _verify_letterbox(folder, manifest)
    if gate is None:
        if problem := compared.problem(bounds):
            raise UserError(f"The {manifest.target} export of `{loaded.path}` disagrees with Keras: {problem}.")
        return found
    return {**found, **gate.pass_through(ours, manifest.target)}


def _verify_letterbox(folder: Path, manifest: manifests.Manifest) -> None:
    """Raises a UserError if the letterbox inside a SavedModel differs from ours."""
    from efficientdet.formats import saved_model

    score, box = saved_model.letterbox_difference(folder, manifest)
    bounds = verification.LIMITS["float32"]
    if not (score <= bounds.score and box <= bounds.box):
        raise UserError(f"The letterbox of `{folder}` changes scores by {score:.1e} and boxes by {box:.2g} px.")


def _result(folder: Path, manifest: manifests.Manifest, found: dict[str, Any]) -> Export:
    num_bytes = sum((folder / name).stat().st_size for name in manifest.files)
    return Export(
        path=str(folder),
        format=manifest.target,
        precision=manifest.precision,
        answer=manifest.answer,
        num_bytes=num_bytes,
        agreement=found,
    )
