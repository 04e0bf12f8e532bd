"""The notebooks: committed without outputs, and executed, in order, on the quickstart's data."""

import json
import shutil
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


@pytest.mark.slow
def test_they_run(tmp_path):
    (tmp_path / "notebooks").mkdir()
    for path in NOTEBOOKS:
        shutil.copy(path, tmp_path / "notebooks")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    outputs = {}
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        resources = {"metadata": {"path": str(tmp_path / "notebooks")}}
        NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
        outputs[path.name[0]] = json.dumps(notebook)
    assert outputs["1"].count("data:video/mp4") == 5
    assert "0 on both sides" in outputs["1"]
    assert outputs["2"].count("data:video/mp4") == 4
    assert "report.html" in outputs["2"]
    assert "as it was:" in outputs["3"]
    assert outputs["4"].count("data:video/mp4") == 4
    assert (tmp_path / "notebooks" / "comparison.html").is_file()
    assert "EvenNoise" in outputs["5"]
    assert "even noise: 20 steps, validation -" in outputs["5"]  # trained, and it learned
    assert "patience 3 stops at" in outputs["5"]
