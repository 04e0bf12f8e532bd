"""What others import: the package at once, names when they are used, notebooks and docs from rooms' faces alone."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import vidlit
from vidlit.lazy import attach

ROOT = Path(__file__).parents[1]
ROOMS = ["vidlit", *(f"vidlit.{path.parent.name}" for path in Path(vidlit.__file__).parent.glob("*/__init__.py"))]
FENCE = re.compile(r"^```python.*?\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("room", ROOMS)
def test_every_name_of_a_face_is_there(room):
    face = import_module(room)
    for name in getattr(face, "__all__", []):
        assert getattr(face, name) is not None
        assert name in dir(face)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'vidlit' has no attribute 'fitt'"):
        _ = vidlit.fitt
    get, names, every = attach("vidlit.models", str(Path(vidlit.__file__).parent / "models" / "__init__.py"))
    assert get("LoRA").__module__ == "vidlit.models.adapters"
    assert "open_family" in names() == every


def test_the_package_is_there_at_once():
    code = (
        "import sys, time; began = time.process_time(); import vidlit, vidlit.models, vidlit.data; "
        "print(time.process_time() - began, *{'torch', 'numpy', 'yaml', 'lightning'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    seconds, *loaded = done.stdout.split()
    assert loaded == []
    assert float(seconds) < 0.1


def shown():
    """Python that notebooks, pages and examples show, by file."""
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        yield path, "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for block in FENCE.findall(path.read_text()):
            yield path, block
    for path in (ROOT / "examples").glob("*.py"):
        yield path, path.read_text()


def imported(code):
    """Modules of ours that code imports."""
    plain = re.sub(r"^( *)[%!].*", r"\1pass", code, flags=re.MULTILINE)  # what notebooks say to IPython
    for node in ast.walk(ast.parse(plain)):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else names
        yield from (name for name in names if name.split(".")[0] == "vidlit")


def test_notebooks_and_docs_import_from_faces_alone():
    found = [(path, name) for path, code in shown() for name in imported(code)]
    assert len(found) > 15
    # What a page has its reader write is a module that is not there.
    deep = [(path.name, name) for path, name in found if name.count(".") > 1 and find_spec(name) is not None]
    assert deep == []


def test_the_list_of_packages_is_that_of_the_folders():
    """Written out, because configs/ lies beside the package in a checkout and in it where it is installed."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "vidlit").rglob("__init__.py")}
    assert listed == sorted({*(".".join(folder.parts) for folder in folders), "vidlit.configs"})
