"""How good is a first detector, and how long does it take? Runs the README's commands on a dataset, as they stand.

    python benchmarks/first_detector.py photographs/ holiday.jpg --output benchmarks/results/first-detector.json

The commands are read from the README ("Your own photographs"), each is a process of its own, and only the names of the
images are exchanged. The dataset has a test split, which is evaluated as well. What is done in `--work` is not done
again, and a training that was stopped resumes; its minutes are then those of all its parts. Minutes mean something only
if nothing else runs on the machine.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import tyro

from efficientdet.benchmarks import report
from efficientdet.storage import files

_ROOT = Path(__file__).parents[1]
_VERBS = ("convert", "train", "evaluate", "predict")


def main(photographs: Path, image: Path, /, *, output: Path, work: Path = Path("first-detector")) -> None:
    """Runs the commands and writes minutes, steps and AP.

    Args:
        photographs: folder of annotated images, as a labelling tool exported it.
        image: one to predict.
        output: JSON file to write.
        work: folder for records, run and predictions.
    """
    work.mkdir(parents=True, exist_ok=True)
    journal = work / "commands.json"
    done: dict[str, Any] = json.loads(journal.read_text()) if journal.is_file() else {}
    for verb, line in commands((_ROOT / "README.md").read_text()).items():
        if verb in done and done[verb]["is_done"]:
            continue
        words = [
            {"photographs/": str(photographs.resolve()), "holiday.jpg": str(image.resolve())}.get(word, word)
            for word in shlex.split(line)[1:]
        ]
        before = done.get(verb, {}).get("minutes", 0.0)
        began, load = time.monotonic(), os.getloadavg()[0]
        command = [sys.executable, "-m", "efficientdet", *words, "--json"]
        status = subprocess.run(command, cwd=work, stdout=subprocess.PIPE, text=True, check=False)
        minutes = before + (time.monotonic() - began) / 60
        done[verb] = {"command": line, "minutes": minutes, "load_before": load, "is_done": not status.returncode}
        if not status.returncode:
            done[verb]["answer"] = json.loads(status.stdout)
        files.write_json(journal, done)
        if status.returncode:
            sys.exit(
                f"`{line}` failed with status {status.returncode} for the reason above; run the same command to resume."
            )
    found = done["evaluate on test"]["answer"]
    table = {
        "what": "the README's commands on a folder of annotated images, as they stand",
        "dataset": photographs.name,
        "commands": {
            verb: {name: row[name] for name in ("command", "minutes", "load_before")} for verb, row in done.items()
        },
        "training": done["train"]["answer"],
        "validation": done["evaluate"]["answer"],
        "test": found,
        **report.circumstances(),
    }
    files.write_json(output, table)
    print(f"AP {found['metrics']['AP']:.3f}, AP50 {found['metrics']['AP50']:.3f} on {found['num_images']} test images")


def commands(readme: str) -> dict[str, str]:
    """Finds the commands of the README's section about one's own photographs.

    Args:
        readme: its text.

    Returns:
        verb -> command, without its comment; in their order. Last, `evaluate on test`: the same on the split that the
        choice of the best weights did not see either.
    """
    (section,) = re.findall(r"^## Your own photographs\n(.*?)^## ", readme, re.MULTILINE | re.DOTALL)
    lines = [line.split("#")[0].strip() for line in section.splitlines() if line.startswith("efficientdet ")]
    found = {line.split()[1]: line for line in lines}
    test = f"{found['evaluate']} --split test"
    return {**{verb: found[verb] for verb in _VERBS}, "evaluate on test": test}


if __name__ == "__main__":
    tyro.cli(main)
