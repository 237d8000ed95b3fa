"""Weights & Biases and MLflow: the metrics, images, config and summary of a run, sent through their own clients.

A failing service neither stops nor delays training: each client runs in its own thread, and an error there is one
line of output. A resumed run continues the same run of the service, whose name is in `<service>-run.txt` in the run
folder; steps that it repeats since its last checkpoint are sent a second time with the same step numbers.
"""

import importlib.util
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from efficientdet import knobs
from efficientdet.config import ExperimentConfig
from efficientdet.errors import UserError

_START_SECONDS = 20.0  # how long a run waits for a service, which may ask a person to log in
_SILENT_SECONDS = 300.0  # after a failure
_CLOSE_SECONDS = 60.0
_PARAMETERS_AT_ONCE = 100  # MLflow's limit
_REASON = 300  # characters of an error that are shown


def check(config: ExperimentConfig) -> None:
    """Raises a UserError if the client of a requested service is not installed."""
    for name, wanted in _wanted(config).items():
        if wanted and not _is_installed(name):
            raise UserError(
                f"`logging.{name}` is `{wanted}`, but {name} is not installed; "
                f"run `pip install 'efficientdet-keras[{name}]'`."
            )


def _wanted(config: ExperimentConfig) -> dict[str, str]:
    return {"wandb": config.logging.wandb, "mlflow": config.logging.mlflow}


def _is_installed(name: str) -> bool:
    # Both clients create a folder of that name where they run; it is found too, but has no `origin`.
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


def open_trackers(
    config: ExperimentConfig, run_dir: Path, *, is_resumed: bool, say: Callable[[str], None]
) -> "list[Tracker]":
    """Opens the services that the config requests.

    Args:
        config: config of the run.
        run_dir: run folder; stores the names of the services' runs.
        is_resumed: whether to continue the same run of the service.
        say: prints a line; called from another thread.
    """
    clients: dict[str, Callable[[ExperimentConfig, Path, bool], Client]] = {"wandb": _Wandb, "mlflow": _Mlflow}
    return [
        Tracker(name, lambda make=clients[name]: make(config, run_dir, is_resumed), say)  # type: ignore[misc]
        for name, wanted in _wanted(config).items()
        if wanted
    ]


def _run_file(run_dir: Path, name: str) -> Path:
    return run_dir / f"{name}-run.txt"


def _known_run(run_dir: Path, name: str, is_resumed: bool) -> str:
    """Reads the name of the service's run that a resumed run continues; empty for a new one."""
    path = _run_file(run_dir, name)
    return path.read_text(encoding="utf-8").strip() if is_resumed and path.exists() else ""


class Client(Protocol):
    """A run of a service."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Sends a line of `metrics.jsonl`."""

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Sends an image: uint8[H, W, 3], RGB."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Sends how the run ended."""

    def close(self, *, is_finished: bool) -> None:
        """Ends the service's run as finished or interrupted."""


class Tracker:
    """Sends the metrics of a run to one service, from its own thread."""

    def __init__(self, name: str, start: Callable[[], Client], say: Callable[[str], None]):
        """Opens the service's run; waits briefly because the client may prompt the user.

        Args:
            name: name of the service and its knob.
            start: opens the run; called again later if it fails.
            say: prints a line.
        """
        self._name, self._start, self._say = name, start, say
        self._client: Client | None = None
        self._is_finished = False
        self._silent_until = 0.0
        self._lost = 0
        self._calls: queue.SimpleQueue[Callable[[Client], None] | None] = queue.SimpleQueue()
        self._opened = threading.Event()
        # A daemon thread, so that a hanging client cannot keep the process from exiting.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()
        self._opened.wait(_START_SECONDS)

    def write(self, line: Mapping[str, Any]) -> None:
        """Queues a line for the client's thread; training does not wait for the service."""
        self._calls.put(lambda client: client.write(line))

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Queues an image for the client's thread."""
        self._calls.put(lambda client: client.image(tag, image, step))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Sends how the run ended."""
        self._is_finished = True
        self._calls.put(lambda client: client.finish(summary))

    def close(self) -> None:
        """Waits until everything is sent, for a minute at most."""
        self._calls.put(None)
        self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            self._say(f"`logging.{self._name}`: {self._calls.qsize()} calls were not sent; the client is hanging.")
        elif self._lost:
            self._say(f"`logging.{self._name}`: {self._lost} calls failed or were skipped.")

    def _work(self) -> None:
        """Makes the queued calls one by one."""
        self._call(lambda _: None)
        self._opened.set()
        for call in iter(self._calls.get, None):
            if time.monotonic() < self._silent_until:
                self._lost += 1
            else:
                self._call(call)
        if self._client is not None:
            self._call(lambda client: client.close(is_finished=self._is_finished))

    def _call(self, call: Callable[[Client], None]) -> None:
        """Makes one call; opens the run first if it is not open."""
        try:
            if self._client is None:
                self._client = self._start()
            call(self._client)
        except Exception as error:  # training does not depend on the client, whatever it raises
            if not self._lost:
                reason = " ".join(str(error).split()) or type(error).__name__
                self._say(
                    f"`logging.{self._name}`: {reason[:_REASON]}; training continues, metrics.jsonl has every line, "
                    f"and the next attempt is in {_SILENT_SECONDS / 60:.0f} minutes"
                )
            self._lost += 1
            self._silent_until = time.monotonic() + _SILENT_SECONDS


class _Wandb:
    """A Weights & Biases run; its own files are in `wandb/` in the run folder."""

    def __init__(self, config: ExperimentConfig, run_dir: Path, is_resumed: bool):
        """Opens the run."""
        import wandb

        name = _known_run(run_dir, "wandb", is_resumed) or secrets.token_hex(4)
        _run_file(run_dir, "wandb").write_text(f"{name}\n", encoding="utf-8")
        self._wandb = wandb
        self._run = wandb.init(
            project=config.logging.wandb,
            id=name,
            resume="allow",
            name=run_dir.resolve().name,
            dir=str(run_dir),
            config=knobs.to_dict(config),
            allow_val_change=True,
            settings=wandb.Settings(console="off", finish_timeout=_CLOSE_SECONDS),  # the terminal belongs to the run
        )
        # A separate step metric: W&B's own must increase, and a resumed run repeats some steps.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, line: Mapping[str, Any]) -> None:
        values = {f"{line['kind']}/{name}": value for name, value in line["values"].items() if value is not None}
        self._run.log({**values, "epoch": line["epoch"], "step": line["step"]})

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        self._run.log({tag: self._wandb.Image(image), "step": step})

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._run.summary.update(knobs.flatten(summary))

    def close(self, *, is_finished: bool) -> None:
        self._run.finish(exit_code=0 if is_finished else 1)


class _Mlflow:
    """A run of MLflow."""

    def __init__(self, config: ExperimentConfig, run_dir: Path, is_resumed: bool):
        """Opens the run in the store of MLFLOW_TRACKING_URI, or the client's default."""
        from mlflow import entities, tracking

        self._entities, self._client = entities, tracking.MlflowClient()
        self._id = _known_run(run_dir, "mlflow", is_resumed)
        if self._id:
            self._client.update_run(self._id, status="RUNNING")
            return
        experiment = self._client.get_experiment_by_name(config.logging.mlflow)
        number = experiment.experiment_id if experiment else self._client.create_experiment(config.logging.mlflow)
        self._id = self._client.create_run(number, run_name=run_dir.resolve().name).info.run_id
        _run_file(run_dir, "mlflow").write_text(f"{self._id}\n", encoding="utf-8")
        # Parameters cannot change later, so a resumed run sends none.
        flat = knobs.flatten(knobs.to_dict(config))
        parameters = [entities.Param(name, str(value)) for name, value in flat.items()]
        for start in range(0, len(parameters), _PARAMETERS_AT_ONCE):
            self._client.log_batch(self._id, params=parameters[start : start + _PARAMETERS_AT_ONCE])

    def write(self, line: Mapping[str, Any]) -> None:
        milliseconds = int(1000 * line["time"])
        found = {f"{line['kind']}/{name}": value for name, value in line["values"].items() if value is not None}
        metrics = [self._entities.Metric(name, value, milliseconds, line["step"]) for name, value in found.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        self._client.log_image(self._id, image, key=tag, step=step, synchronous=True)

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._client.log_dict(self._id, dict(summary), "summary.json")

    def close(self, *, is_finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if is_finished else "KILLED")
