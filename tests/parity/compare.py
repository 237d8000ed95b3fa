"""Our network against PyTorch's effdet: same weights, same image, each level of both heads.

    python tests/parity/compare.py tf_efficientdet_d0 --size 512

makes a reference in a process of its own (reference.py), imports its weights from files as a user would, with
`import_weights`, runs our network in float64 and in float32, and prints for each output what agreement.py measures.
JAX computes in float32 alone here.

Exits with 1 if an output does not agree, or if the formats that PyTorch writes do not give the same weights.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import pathlib
import platform
import subprocess
import sys
import tempfile

import agreement
import numpy as np
import reference
from rich import box, console, table

from efficientdet import backend

_VERSIONS = ("torch", "effdet", "timm", "keras", "tensorflow", "jax", "numpy")


def main():
    """Compares one network; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="tf_efficientdet_d0 .. d7, d7x, lite0 .. lite4, lite3x")
    parser.add_argument("--size", type=int, nargs="+", default=[512], help="height and width of the image, px")
    parser.add_argument("--seed", type=int, default=0, help="of weights and images")
    parser.add_argument("--backend", choices=backend.NAMES, default="tensorflow")
    parser.add_argument("--formats", choices=reference.FORMATS, nargs="+", default=list(reference.FORMATS))
    parser.add_argument("--output", type=pathlib.Path, help="folder for the figures as JSON")
    arguments = parser.parse_args()
    if len(arguments.size) > 2:
        parser.error("`--size` is one number or two.")
    image_size = (arguments.size[0], arguments.size[-1])
    backend.choose(arguments.backend)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        make_reference(arguments.model, image_size, arguments.seed, folder)
        imported = import_formats(folder, arguments.model, arguments.formats)
        with np.load(folder / "reference.npz") as file:
            expected = dict(file)
    rows = compare_network(imported, expected, has_double=arguments.backend == "tensorflow")
    title = f"{arguments.model}, {image_size[0]} x {image_size[1]}, {arguments.backend}, {', '.join(arguments.formats)}"
    print_rows(title, rows)
    if arguments.output:
        write_rows(arguments, image_size, rows)
    if not all(row.agrees for row in rows):
        sys.exit(f"{title}: an output is not within the limits (`!`).")


def make_reference(model, image_size, seed, folder):
    """Runs reference.py, so that its memory is free again before our network runs."""
    size = [str(side) for side in image_size]
    command = [sys.executable, reference.__file__, model, "--size", *size, "--seed", str(seed), "--output", folder]
    subprocess.run(command, check=True)


def import_formats(folder, model, formats):
    """Imports the same weights from several files; they must give the same."""
    import ours

    imported = {
        name: ours.import_file(reference.weights_file(folder, model, name), folder / f"imported-{name}.safetensors")
        for name in formats
    }
    first, *others = imported.values()
    if first.model.name != f"efficientdet-{model.removeprefix('tf_efficientdet_')}":
        sys.exit(f"{model} was taken for {first.model.name}.")
    for other in others:
        if other.model != first.model or not all(
            np.array_equal(array, other.arrays[path]) for path, array in first.arrays.items()
        ):
            sys.exit(f"{model}: the formats {', '.join(formats)} do not give the same weights.")
    return first


def compare_network(imported, expected, has_double):
    """Runs our network and compares it with the arrays of a reference; `has_double`: in float64 too."""
    import ours

    outputs = {name.removeprefix("outputs/"): expected[name] for name in expected if name.startswith("outputs/")}
    noise = {name: expected[f"noise/{name}"] for name in outputs}
    double = ours.predict(imported, expected["image"], "float64") if has_double else None
    single = ours.predict(imported, expected["image"], "float32")
    return agreement.compare_outputs(single, double, outputs, noise)


def print_rows(title, rows):
    """Prints a table."""
    printed = table.Table("output", box=box.SIMPLE_HEAD)
    for column in ("spread", "exact", "difference", "noise", "ratio"):
        printed.add_column(column, justify="right")
    for row in rows:
        exact = "-" if row.exact is None else f"{row.exact:.1e}"
        mark = "" if row.agrees else " !"
        numbers = (f"{row.spread:.2f}", exact, f"{row.difference:.1e}", f"{row.noise:.1e}", f"{row.ratio:.2f}{mark}")
        printed.add_row(row.output, *numbers)
    terminal = console.Console(highlight=False)
    terminal.print(title, soft_wrap=True)
    terminal.print(printed)


def write_rows(arguments, image_size, rows):
    """Writes the figures, with what is needed to measure them again."""
    height, width = image_size
    size = f"{height}x{width}"
    on = "" if arguments.backend == "tensorflow" else f"-{arguments.backend}"
    path = arguments.output / f"parity-{arguments.model.removeprefix('tf_efficientdet_')}-{size}{on}.json"
    figures = {
        "model": arguments.model,
        "image_size": [height, width],
        "backend": arguments.backend,
        "seed": arguments.seed,
        "formats": arguments.formats,
        "limit": agreement.LIMIT,
        "largest_ratio": max(row.ratio for row in rows),
        "agrees": all(row.agrees for row in rows),
        "outputs": [dataclasses.asdict(row) for row in rows],
        "command": " ".join(["python", "tests/parity/compare.py", *sys.argv[1:]]),
        "processor": _processor(),
        "versions": {"python": platform.python_version(), **_versions()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1) + "\n")


def _versions():
    """Finds the versions of what computed."""
    found = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"].lower().replace("_", "-").removesuffix("-cpu")
        if name in _VERSIONS:
            found[name] = distribution.version
    return dict(sorted(found.items()))


def _processor():
    """Reads the processor's name, which decides the order in which numbers are added."""
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
