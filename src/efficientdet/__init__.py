"""EfficientDet object detection for Keras 3.

The public names below are loaded on first use, so `import efficientdet` doesn't import TensorFlow or JAX.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# TensorFlow disables oneDNN on CPUs without AVX-512, but with AVX2 it also makes a step a fifth to a third faster.
# TensorFlow reads this on import, and any module of the package may be the first to import it.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

__all__ = [
    "PRESETS",
    "Category",
    "Detector",
    "ExperimentConfig",
    "ModelConfig",
    "UserError",
    "convert",
    "describe",
    "doctor",
    "download",
    "evaluate",
    "export",
    "predict",
    "preview",
    "serve",
    "train",
]

_HOMES = {
    "Category": "efficientdet.structures",
    "Detector": "efficientdet.inference.detector",
    "ExperimentConfig": "efficientdet.config",
    "ModelConfig": "efficientdet.config",
    "PRESETS": "efficientdet.presets",
    "UserError": "efficientdet.errors",
    "convert": "efficientdet.data.conversion",
    "describe": "efficientdet.model.complexity",
    "doctor": "efficientdet.diagnosis",
    "download": "efficientdet.data.coco_download",
    "evaluate": "efficientdet.evaluation.measuring",
    "export": "efficientdet.exporters.exports",
    "predict": "efficientdet.inference.prediction",
    "preview": "efficientdet.training.trials.previews",
    "serve": "efficientdet.serving.service",
    "train": "efficientdet.training.experiment",
}

# Or TensorFlow: if `backend` imports it first, TensorFlow's own log lines stay off the terminal.
_NEED_KERAS = {
    "Detector",
    "convert",
    "describe",
    "doctor",
    "download",
    "evaluate",
    "export",
    "predict",
    "preview",
    "serve",
    "train",
}

if TYPE_CHECKING:
    from efficientdet.config import ExperimentConfig, ModelConfig
    from efficientdet.data.coco_download import download
    from efficientdet.data.conversion import convert
    from efficientdet.diagnosis import doctor
    from efficientdet.errors import UserError
    from efficientdet.evaluation.measuring import evaluate
    from efficientdet.exporters.exports import export
    from efficientdet.inference.detector import Detector
    from efficientdet.inference.prediction import predict
    from efficientdet.model.complexity import describe
    from efficientdet.presets import PRESETS
    from efficientdet.serving.service import serve
    from efficientdet.structures import Category
    from efficientdet.training.experiment import train
    from efficientdet.training.trials.previews import preview


def __getattr__(name: str) -> Any:
    """Loads a public name."""
    if name in _HOMES:
        if name in _NEED_KERAS and "keras" not in sys.modules:
            from efficientdet import backend

            backend.choose()  # Keras itself would pick TensorFlow even if only JAX is installed
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'efficientdet' has no attribute {name!r}")
