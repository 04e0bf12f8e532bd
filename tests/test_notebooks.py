"""The notebooks: committed without outputs, and executed, in order, in an empty folder, with the installed wheel."""

import json
import os
import shutil
import sys
import sysconfig
import venv
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_are_five():
    assert [path.name[0] for path in NOTEBOOKS] == list("12345")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs(path):
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


def first_code(path):
    return next(cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code").source


def test_all_begin_by_installing():
    (code,) = {first_code(path) for path in NOTEBOOKS}
    assert "%pip install --quiet" in code


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_path_leads_out_of_the_folder(path):
    assert "../" not in "".join(cell.source for cell in nbformat.read(path, as_version=4).cells)


@pytest.fixture
def run_with(tmp_path, monkeypatch):
    """Executes a notebook in a folder, with a Python of its own."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # threads of a busy machine wait for each other

    def run(python, notebook, folder):
        kernel = tmp_path / "jupyter" / "kernels" / "own"
        kernel.mkdir(parents=True, exist_ok=True)
        words = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        (kernel / "kernel.json").write_text(json.dumps({"argv": words, "display_name": "own", "language": "python"}))
        resources = {"metadata": {"path": str(folder)}}
        NotebookClient(notebook, timeout=500, kernel_name="own", resources=resources).execute()
        return json.dumps(notebook)

    return run


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_they_run(installed, run_with, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    outputs = {}
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        notebook.cells.append(nbformat.v4.new_code_cell("import vidlit; print('from', vidlit.__file__)"))
        outputs[path.name[0]] = run_with(installed / "python", notebook, folder)
        assert f"from {installed.parent}" in outputs[path.name[0]]
    assert outputs["1"].count("data:video/mp4") == 5
    assert "0 on both sides" in outputs["1"]
    assert outputs["2"].count("data:video/mp4") == 4
    assert "report.html" in outputs["2"]
    assert "step 40: loss" in outputs["2"]  # a callback of one's own
    assert "trained numbers: No signal asked to stop" in outputs["2"]
    assert "as it was:" in outputs["3"]
    assert outputs["3"].count("clips scored: 1") == 8  # recordings
    assert outputs["4"].count("data:video/mp4") == 4
    assert (folder / "comparison.html").is_file()
    assert "EvenNoise" in outputs["5"]
    assert "even noise: 20 steps, validation -" in outputs["5"]  # trained, and it learned
    assert "patience 3 stops at" in outputs["5"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="where the packages of an environment lie")
def test_the_first_cell_installs_from_the_checkout_around_it(tracked, run_with, tmp_path, monkeypatch):
    """Into an environment that has all but vidlit; pip asks no index and builds with what is here."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip's way of saying so
    checkout = tmp_path / "checkout"
    for name in tracked:
        if name.startswith(("vidlit/", "configs/", "notebooks/")) or "/" not in name:
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, checkout / name)
    environment = tmp_path / "environment"
    venv.create(environment)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    cells = [first_code(NOTEBOOKS[0]), "import vidlit; print('from', vidlit.__file__)"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in cells])
    printed = run_with(environment / "bin" / "python", notebook, checkout / "notebooks")
    assert f"from {environment}" in printed
    assert sys.prefix not in printed
