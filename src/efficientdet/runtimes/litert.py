"""LiteRT (TensorFlow Lite): flat graphs for telephones and small computers, here on the processor with XNNPACK.

Only operations that LiteRT has itself are run; custom ones, TensorFlow's among them, are refused.
"""

import importlib.util
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet.errors import UserError
from efficientdet.runtimes import exported
from efficientdet.runtimes.manifest import Manifest

SIGNATURE = "serving_default"


def require() -> None:
    """Raises a UserError if LiteRT is not installed."""
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise UserError("LiteRT is not installed; `pip install 'efficientdet-keras[litert]'`.")


def open_program(path: Path, manifest: Manifest, num_threads: int = 0) -> exported.Program:
    """Opens a graph.

    Args:
        path: model.tflite.
        manifest: what it should be.
        num_threads: 0: all.

    Raises:
        UserError: LiteRT is not installed, or the graph is none, hostile, or another than the manifest says.
    """
    require()
    from ai_edge_litert.interpreter import Interpreter

    content = path.read_bytes()
    _check(content, path)
    try:
        interpreter = Interpreter(model_content=content, num_threads=num_threads or os.cpu_count())
        signatures = interpreter.get_signature_list()
    except (ValueError, RuntimeError) as error:
        raise UserError(f"`{path}` is not a graph that LiteRT runs: {error}.") from error
    if SIGNATURE not in signatures:
        raise UserError(f"`{path}` has no signature `{SIGNATURE}`; it is not an export of this program.")
    signature = signatures[SIGNATURE]
    exported.check_outputs(path, manifest, [*signature["inputs"], *signature["outputs"]])
    runner = interpreter.get_signature_runner(SIGNATURE)
    lock = threading.Lock()  # one set of arrays

    def run(images: np.ndarray, valid_size: np.ndarray) -> dict[str, np.ndarray]:
        with lock:  # the runner makes room for as many images as come
            found: dict[str, np.ndarray] = runner(images=images, valid_size=valid_size)
            return found

    return run


def _check(content: bytes, path: Path) -> None:
    """Raises a UserError for a graph with custom operations."""
    from ai_edge_litert import schema_py_generated as schema

    if content[4:8] != b"TFL3":
        raise UserError(f"`{path}` is not a LiteRT graph.")
    try:
        model = schema.Model.GetRootAs(content, 0)
        codes = [model.OperatorCodes(number) for number in range(model.OperatorCodesLength())]
        custom = [_name(code) for code in codes if code.CustomCode() is not None]
    except Exception as error:  # a damaged table points anywhere
        raise UserError(f"`{path}` is a damaged LiteRT graph: {error}.") from error
    if custom:
        raise UserError(f"`{path}` has the custom operation `{custom[0]}`, which is refused.")


def _name(code: Any) -> str:
    return code.CustomCode().decode(errors="replace")[:60]
