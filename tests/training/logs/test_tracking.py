"""W&B and MLflow: what arrives there, read back with their own readers; a service that fails ends no training."""

import importlib.util
import struct
import threading
import time

import numpy as np
import pytest

from efficientdet.config import ExperimentConfig, LoggingConfig
from efficientdet.errors import UserError
from efficientdet.training.logs import metrics, tracking

_LINE = {"kind": "train", "step": 20, "epoch": 0.5, "time": 0.0, "values": {"loss": 1.5, "device_memory": None}}
_SUMMARY = {"steps": 40, "best_ap": 0.25, "metrics": {"AP": 0.25, "APs": None}}

needs_wandb = pytest.mark.skipif(not tracking._is_installed("wandb"), reason="the extra `wandb` is not installed")
needs_mlflow = pytest.mark.skipif(not tracking._is_installed("mlflow"), reason="the extra `mlflow` is not installed")


class _Kept:
    """A client that keeps what it is given, and fails as it is told."""

    def __init__(self, error=None):
        self.calls, self.error = [], error

    def write(self, line):
        if self.error:
            raise self.error
        self.calls.append(("write", line["step"]))

    def image(self, tag, image, step):
        self.calls.append(("image", tag, step))

    def finish(self, summary):
        self.calls.append(("finish", summary["steps"]))

    def close(self, *, is_finished):
        self.calls.append(("close", is_finished))


def _write(tracker, *, is_finished=True):
    tracker.write({**_LINE, "time": time.time()})
    tracker.image("truth", np.zeros((2, 2, 3), np.uint8), 20)
    if is_finished:
        tracker.finish(_SUMMARY)
    tracker.close()


@pytest.fixture
def said():
    return []


def test_calls_arrive_in_order(said):
    client = _Kept()
    _write(tracking.Tracker("mlflow", lambda: client, said.append))
    assert client.calls == [("write", 20), ("image", "truth", 20), ("finish", 40), ("close", True)]
    assert said == []


def test_an_interrupted_run_is_closed_as_such(said):
    client = _Kept()
    _write(tracking.Tracker("mlflow", lambda: client, said.append), is_finished=False)
    assert client.calls[-1] == ("close", False)


def test_a_service_that_fails_is_one_line_and_left_alone_for_a_while(said):
    client = _Kept(ConnectionError("no\nroute"))
    tracker = tracking.Tracker("mlflow", lambda: client, said.append)
    for _ in range(3):
        tracker.write(_LINE)
    tracker.close()
    assert len(said) == 2
    assert said[0].startswith("`logging.mlflow`: no route; training continues")
    assert said[1] == "`logging.mlflow`: 3 calls failed or were skipped."
    assert client.calls == [("close", False)]


def test_a_service_that_comes_back_is_used_again(said, monkeypatch):
    monkeypatch.setattr(tracking, "_SILENT_SECONDS", 0.0)
    client, attempts = _Kept(), []

    def start():
        attempts.append(1)
        if len(attempts) == 1:
            raise ConnectionError("not yet")
        return client

    _write(tracking.Tracker("mlflow", start, said.append))
    assert [call[0] for call in client.calls] == ["write", "image", "finish", "close"]
    assert len(said) == 2


def test_a_service_that_hangs_holds_up_neither_steps_nor_the_end(said, monkeypatch):
    monkeypatch.setattr(tracking, "_START_SECONDS", 0.05)
    monkeypatch.setattr(tracking, "_CLOSE_SECONDS", 0.05)
    answers = threading.Event()
    began = time.monotonic()
    tracker = tracking.Tracker("wandb", lambda: answers.wait(60) and _Kept(), said.append)
    _write(tracker)
    assert time.monotonic() - began < 5
    assert said == ["`logging.wandb`: 4 calls were not sent; the client is hanging."]
    answers.set()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_extra_is_named_before_anything_is_done(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf"`logging\.{name}` is `birds`, but {name} is not installed; .*\[{name}\]"):
        tracking.check(ExperimentConfig(logging=LoggingConfig(**{name: "birds"})))


def test_a_folder_that_a_client_has_made_is_not_taken_for_it(tmp_path, monkeypatch):
    (tmp_path / "client_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not tracking._is_installed("client_folder")
    assert tracking._is_installed("json")


def _records(run_dir):
    """Reads what W&B wrote offline, one list a process that wrote.

    The file is a log as LevelDB's: 7 bytes of header, then blocks of 2^15 bytes with pieces of records, each a checksum
    (4 bytes), its length (2) and its kind (1: whole, 2: first, 3: middle, 4: last).
    """
    from wandb.proto import wandb_internal_pb2

    found = []
    for path in sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb")):
        content, position, records, partial = path.read_bytes(), 7, [], b""
        assert content.startswith(b":W&B")
        while position < len(content):
            if 2**15 - position % 2**15 < 7:  # no room for a piece
                position += 2**15 - position % 2**15
                continue
            _, length, kind = struct.unpack("<IHB", content[position : position + 7])
            partial += content[position + 7 : position + 7 + length]
            position += 7 + length
            if kind in (1, 4):
                records.append(wandb_internal_pb2.Record.FromString(partial))
                partial = b""
        found.append(records)
    return found


def _history(records):
    return [
        {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]


@needs_wandb
@pytest.mark.filterwarnings("ignore")
def test_wandb_gets_lines_config_images_and_summary_and_a_resumed_run_is_the_same(tmp_path, said, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = ExperimentConfig(logging=LoggingConfig(wandb="birds"))
    for is_resumed in (False, True):
        (tracker,) = tracking.open_trackers(config, tmp_path, is_resumed=is_resumed, say=said.append)
        _write(tracker, is_finished=is_resumed)
    assert said == []
    first, second = _records(tmp_path)
    history = _history(first)
    assert any(row.get("train/loss") == "1.5" and row["step"] == "20" for row in history)
    assert any(key.startswith("truth/") for row in history for key in row), "the image"
    assert not any("train/device_memory" in row for row in history), "null is left out"
    runs = [next(record.run for record in records if record.HasField("run")) for records in (first, second)]
    assert runs[0].project == "birds"
    assert {run.run_id for run in runs} == {(tmp_path / "wandb-run.txt").read_text().strip()}
    settings = {item.key: item.value_json for item in runs[0].config.update}
    assert '"batch_size":64' in settings["training"].replace(" ", "")
    summary = [item for record in second if record.HasField("summary") for item in record.summary.update]
    assert {"best_ap", "metrics.AP"} <= {item.key or ".".join(item.nested_key) for item in summary}


@needs_mlflow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_gets_lines_config_images_and_summary_and_a_resumed_run_is_the_same(tmp_path, said, monkeypatch):
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/birds.db")
    config = ExperimentConfig(logging=LoggingConfig(mlflow="birds"))
    for is_resumed in (False, True):
        (tracker,) = tracking.open_trackers(config, tmp_path, is_resumed=is_resumed, say=said.append)
        _write(tracker, is_finished=is_resumed)
    assert said == []
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("birds").experiment_id])
    assert run.info.run_id == (tmp_path / "mlflow-run.txt").read_text().strip()
    assert run.info.status == "FINISHED"
    assert run.data.params["training.batch_size"] == "64"
    points = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.value, point.step) for point in points] == [(1.5, 20), (1.5, 20)]
    assert "train/device_memory" not in run.data.metrics
    assert len(client.list_artifacts(run.info.run_id, "images")) == 4, "two images, each large and small"
    assert "summary.json" in [artifact.path for artifact in client.list_artifacts(run.info.run_id)]


@needs_mlflow
@pytest.mark.filterwarnings("ignore")
def test_a_run_without_its_mlflow_server_goes_on(tmp_path, said, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody listens on this port
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = ExperimentConfig(logging=LoggingConfig(mlflow="birds"))
    with metrics.open_writer(config, tmp_path, say=said.append) as writer:
        writer.write("train", step=1, epoch=0.1, values={"loss": 1.0})
    assert len(metrics.read_lines(tmp_path / "metrics.jsonl")) == 1
    assert "127.0.0.1" in said[0]
    assert len(said) == 2
