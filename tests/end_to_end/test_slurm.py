"""The scripts for SLURM, with a little `srun` and `scontrol` in the place of the real ones; the processes are real."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from efficientdet.training.logs import metrics

_FOLDER = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "slurm"
_PLAIN, _CONTAINER = _FOLDER / "train.sbatch", _FOLDER / "train-container.sbatch"
_BOTH = pytest.mark.parametrize("script", [_PLAIN, _CONTAINER], ids=lambda path: path.stem)

# Does what srun does for a script: writes down its options, starts the tasks with the variables that a program sees,
# waits for all, and ends with the highest status.
_SRUN = """\
#!/bin/bash
while [[ $1 == --* ]]; do echo "$1" >>"$RECORDS/srun"; shift; done
for ((task = 0; task < TASKS; task++)); do
  SLURM_NTASKS=$TASKS SLURM_STEP_NUM_TASKS=$TASKS SLURM_STEP_NODELIST=127.0.0.1 SLURM_STEP_NUM_NODES=1 \
    SLURM_STEP_ID=0 SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
  pids+=($!)
  echo $! >>"$RECORDS/pids"
done
highest=0
for pid in "${pids[@]}"; do
  wait "$pid"
  status=$?
  ((status > highest)) && highest=$status
done
exit "$highest"
"""
_SCONTROL = '#!/bin/bash\necho "$@" >>"$RECORDS/scontrol"\n'
# In the place of the program, where only its status counts.
_ENDS = '#!/bin/bash\necho "$@" >>"$RECORDS/arguments"\nexit "$STATUS"\n'

_TINY = (
    "demo --data.train synthetic --data.synthetic-examples 16 --data.validation none --model.image-size 32 32 "
    "--model.backbone.width 0.25 --model.backbone.depth 0.25 --model.num-cells 1 --model.head-repeats 0 "
    "--model.feature-channels 8 --training.freeze all_but_heads --training.batch-size 2 --training.evaluate-every 0 "
    "--training.log-every 1"
)


@pytest.fixture
def cluster(tmp_path, quick_jax):
    """A folder of commands that come first on PATH, and the variables of a batch job."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, text in {"srun": _SRUN, "scontrol": _SCONTROL}.items():
        _write_command(commands / name, text)
    program = pathlib.Path(sys.executable).parent  # where `efficientdet` is installed
    return {
        **os.environ,
        **quick_jax,
        "PATH": f"{commands}{os.pathsep}{program}{os.pathsep}{os.environ['PATH']}",
        "RECORDS": str(tmp_path),
        "TASKS": "2",
        # JAX makes the port of the first process of the job's number.
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_CPUS_ON_NODE": "16",
        "SLURM_NTASKS_PER_NODE": "8",
        "IMAGE": "image.sqsh",
        "DATA": "/lustre/records",
        "RUNS": str(tmp_path / "runs"),
    }


def _write_command(path, text):
    path.write_text(text)
    path.chmod(0o755)


def _replace_program(cluster, status):
    """Puts a program in the place of ours that writes down its arguments and ends with a status."""
    _write_command(pathlib.Path(cluster["RECORDS"]) / "commands" / "efficientdet", _ENDS)
    cluster["STATUS"] = str(status)


def _run(script, cluster, *words):
    folder = cluster["RECORDS"]
    return subprocess.run(["bash", script, *words], env=cluster, cwd=folder, capture_output=True, text=True)


def _recorded(cluster, name):
    path = pathlib.Path(cluster["RECORDS"]) / name
    return path.read_text().splitlines() if path.exists() else []


def _directives(script):
    found = re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", script.read_text(), re.MULTILINE)
    return {name: value or None for name, value in found}


@_BOTH
def test_a_script_asks_for_eight_processes_on_eight_gpus_of_a_node_and_can_be_requeued(script):
    directives = _directives(script)
    assert (directives["nodes"], directives["ntasks-per-node"], directives["gpus-per-node"]) == ("1", "8", "8")
    assert "requeue" in directives
    assert directives["open-mode"] == "append", "the log of a job that goes on"
    # To the processes: `B:` would send it to the script's shell.
    assert directives["signal"] == "USR1@120"


def test_both_scripts_ask_for_the_same():
    assert _directives(_PLAIN) == _directives(_CONTAINER)


@_BOTH
def test_a_directive_stands_before_the_first_command(script):
    lines = script.read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert not [line for line in lines[first:] if line.startswith("#SBATCH")], "sbatch reads no further"


@_BOTH
def test_the_words_after_a_script_reach_the_program_as_they_are(script, cluster):
    _replace_program(cluster, 0)
    done = _run(script, cluster, "d0-amp-8xa100", "--data.train", "/data/a b")
    assert done.returncode == 0, done.stderr
    assert _recorded(cluster, "arguments") == ["train d0-amp-8xa100 --data.train /data/a b --backend jax"] * 2
    options = _recorded(cluster, "srun")
    assert "--cpus-per-task=2" in options
    assert "--kill-on-bad-exit=0" in options


def test_the_container_s_script_names_image_and_mounts(cluster):
    _replace_program(cluster, 0)
    cluster["MOUNTS"] = "/scratch:/scratch"
    assert _run(_CONTAINER, cluster, "d0").returncode == 0
    options = _recorded(cluster, "srun")
    assert "--container-image=image.sqsh" in options
    mounts = f"/lustre/records:/data:ro,{cluster['RUNS']}:/workspace/runs,/scratch:/scratch"
    assert f"--container-mounts={mounts}" in options


@pytest.mark.parametrize("name", ["IMAGE", "DATA", "RUNS"])
def test_the_container_s_script_says_what_is_not_set(name, cluster):
    del cluster[name]
    done = _run(_CONTAINER, cluster, "d0")
    assert done.returncode == 2
    assert f"`{name}` is not set" in done.stderr
    assert not _recorded(cluster, "srun")


@_BOTH
def test_a_script_without_words_explains_itself(script, cluster):
    done = _run(script, cluster)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: sbatch")


@_BOTH
@pytest.mark.parametrize(("status", "is_requeued"), [(75, True), (0, False), (1, False), (137, False)])
def test_a_job_is_requeued_when_the_run_can_go_on_and_only_then(script, status, is_requeued, cluster):
    _replace_program(cluster, status)
    done = _run(script, cluster, "d0")
    assert done.returncode == status
    assert _recorded(cluster, "scontrol") == ([f"requeue {cluster['SLURM_JOB_ID']}"] if is_requeued else [])


@_BOTH
def test_a_job_is_not_requeued_forever(script, cluster):
    _replace_program(cluster, 75)
    cluster |= {"SLURM_RESTART_COUNT": "3", "MAX_RESTARTS": "3"}
    done = _run(script, cluster, "d0")
    assert done.returncode == 75
    assert not _recorded(cluster, "scontrol")
    assert "not requeued: 3 restarts" in done.stderr


def _wait_for_checkpoint(job, run):
    deadline = time.monotonic() + 300
    while not list(run.glob("checkpoints/step-*")):
        assert job.poll() is None, job.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_two_processes_whose_time_is_up_are_saved_and_requeued_and_then_go_on(cluster):
    run = pathlib.Path(cluster["RECORDS"]) / "run"
    words = [*_TINY.split(), "--training.epochs", "6", "--training.checkpoint-every", "1", "--run-dir", "run"]
    job = subprocess.Popen(
        ["bash", _PLAIN, *words], env=cluster, cwd=cluster["RECORDS"], stderr=subprocess.PIPE, text=True
    )
    _wait_for_checkpoint(job, run)
    for pid in _recorded(cluster, "pids"):
        os.kill(int(pid), signal.SIGUSR1)  # as SLURM does: to the processes, not to the script
    said = job.communicate(timeout=300)[1]
    assert job.returncode == 75, said
    assert _recorded(cluster, "scontrol") == [f"requeue {cluster['SLURM_JOB_ID']}"]
    assert "2 devices in 2 processes" in (run / "log.txt").read_text()
    cluster["SLURM_RESTART_COUNT"] = "1"
    done = _run(_PLAIN, cluster, *words)
    assert done.returncode == 0, done.stderr
    assert re.search(r"resumed at step [1-9]\d* of 48", (run / "log.txt").read_text())
    assert json.loads((run / "summary.json").read_text())["steps"] == 48
    assert [line["step"] for line in metrics.read_lines(run / "metrics.jsonl")] == list(range(1, 49))
    assert len(_recorded(cluster, "scontrol")) == 1, "a run that is done is not requeued"
