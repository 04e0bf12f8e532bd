"""Who may know whom: the table of the architecture, held against every import in the package."""

import ast
import importlib
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import vidlit

PACKAGE = Path(vidlit.__file__).parent

ORDER = """
errors io_retry remote_files whole_files held_lock bounded_yaml lazy lightning_internals stopping metrics diffusion
models video
latents data runs training sampling report signals forecast callbacks plugins commands
""".split()
"""The rooms. Each may import those that stand before it, for typing too; the top of the package is the face of all."""

THIRD_PARTY = {
    "lightning": "data/datamodule latents/encode/lightning_engine latents/quiet_lightning runs training sampling "
    "signals forecast callbacks commands",
    "diffusers": "models",
    "transformers": "models",
    "peft": "models",
    "av": "video",
    "wandb": "runs/loggers/wandb_writer runs/loggers/background_logger commands",
    "torch": "metrics diffusion models latents data runs training sampling signals forecast callbacks commands",
}
"""Packages with a place of their own, and the rooms, or files whose names begin so, that may import them."""
MOST_LINES, MOST_FILES = 400, 14

LAZY_ONLY = {"diffusers", "transformers", "wandb", "peft", "huggingface_hub"}
"""Take seconds to import: only inside functions, except where a class derives from theirs."""
EAGER = {"models/codec.py"}


def is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports_of(path, *, typing=False, top_level_only=False):
    """Dotted names that a file imports: modules, and names taken from packages of ours.

    Args:
        path: of the file.
        typing: also what it imports for type checking.
        top_level_only: only what is imported when the file is.
    """
    names = set()

    def visit(node):
        if is_type_checking(node) and not typing:
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        if not (top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            for child in ast.iter_child_nodes(node):
                visit(child)

    visit(ast.parse(path.read_text()))
    return {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}


def room_of(module):
    """The room of a file below the package, or of a dotted name."""
    parts = module.removeprefix("vidlit.").removesuffix(".py").replace("/", ".").split(".")
    return parts[0]


def upward(file, names):
    """What a file imports from rooms that stand behind its own."""
    place = ORDER.index(room_of(file))
    rooms = {name: room_of(name) for name in names if name.startswith("vidlit.")}
    assert set(rooms.values()) <= {*ORDER, "__version__"}, f"{file} imports from a room that is not in the list"
    return sorted(name for name, room in rooms.items() if room in ORDER and ORDER.index(room) > place)


def out_of_place(file, names):
    """Packages that a file imports and that have their place elsewhere."""
    packages = {name.split(".")[0] for name in names} & set(THIRD_PARTY)
    return sorted(each for each in packages if not file.startswith(tuple(THIRD_PARTY[each].split())))


FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
IN_ROOMS = [file for file in FILES if file not in ("__init__.py", "__main__.py")]


@pytest.mark.parametrize("file", IN_ROOMS)
def test_a_file_imports_only_what_stands_before_its_room(file):
    assert upward(file, imports_of(PACKAGE / file, typing=True)) == []


@pytest.mark.parametrize("file", IN_ROOMS)
def test_packages_are_imported_in_their_place(file):
    assert out_of_place(file, imports_of(PACKAGE / file)) == []


def test_every_room_stands_in_the_list():
    assert {room_of(file) for file in IN_ROOMS} == set(ORDER)


def test_no_room_is_crowded_and_no_file_is_long():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    crowded = {str(folder): count for folder in folders if (count := len(list(folder.glob("*.py")))) > MOST_FILES}
    long = {file: count for file in FILES if (count := len((PACKAGE / file).read_text().splitlines())) > MOST_LINES}
    assert (crowded, long) == ({}, {})


def test_no_file_name_stands_twice():
    names = Counter(Path(file).name for file in FILES if not file.endswith("__init__.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_the_rule_finds_what_it_forbids(tmp_path):
    source = tmp_path / "code.py"
    source.write_text(
        "import json\nfrom typing import TYPE_CHECKING\nimport lightning.pytorch as pl\n"
        "if TYPE_CHECKING:\n    from vidlit.training.module import VideoDiffusionModule\n"
        "def f():\n    from vidlit.data.split import x\n    from vidlit.commands import cli\n"
    )
    names = imports_of(source)
    assert names == {"lightning.pytorch", "vidlit.data.split.x", "vidlit.commands.cli"}
    assert imports_of(source, top_level_only=True) == {"lightning.pytorch"}
    for_typing = imports_of(source, typing=True)
    assert upward("metrics/paired_loss.py", for_typing) == [
        "vidlit.commands.cli",
        "vidlit.data.split.x",
        "vidlit.training.module.VideoDiffusionModule",
    ]
    assert upward("training/module.py", for_typing) == ["vidlit.commands.cli"]
    assert out_of_place("metrics/paired_loss.py", names) == ["lightning"]
    assert out_of_place("training/module.py", names) == []
    with pytest.raises(AssertionError, match="not in the list"):
        upward("metrics/paired_loss.py", {"vidlit.helpers.x"})


@pytest.mark.parametrize("room", ["metrics", "stopping"])
def test_pure_rooms_load_without_lightning(room):
    """Also what they import imports it not."""
    modules = [f"vidlit.{file[:-3].replace('/', '.')}" for file in FILES if file.startswith(f"{room}/")]
    assert len(modules) > 1
    code = f"import importlib, sys; [importlib.import_module(m) for m in {modules}]; print('lightning' in sys.modules)"
    if room == "stopping":
        code += "; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert set(done.stdout.split()) == {"False"}


@pytest.mark.parametrize("file", [file for file in FILES if file not in EAGER])
def test_slow_packages_are_imported_where_they_are_used(file):
    eager = {name.split(".")[0] for name in imports_of(PACKAGE / file, top_level_only=True)}
    assert not eager & LAZY_ONLY


TESTS = sorted(path.relative_to(PACKAGE.parent).as_posix() for path in (PACKAGE.parent / "tests").rglob("*.py"))


@pytest.mark.parametrize("file", TESTS)
def test_collecting_tests_loads_no_pipeline(file):
    """`import diffusers` is quick, a class of its pipelines or of peft is not: take it where it is used."""
    eager = imports_of(PACKAGE.parent / file, top_level_only=True) - {"diffusers", "transformers"}
    assert not {name for name in eager if name.split(".")[0] in LAZY_ONLY}


def test_help_is_quick_and_loads_nothing_slow():
    code = (
        "import sys; from vidlit.__main__ import main; code = main(['--help']); "
        "slow = {'torch', 'lightning', 'diffusers', 'transformers', 'wandb', 'av'}; "
        "print('LOADED', *sorted(slow & set(sys.modules))); "
        "sys.exit(code)"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    assert re.search(r"^LOADED$", done.stdout, re.MULTILINE), done.stdout
    for command in ("fit", "validate", "test", "encode", "report", "dashboard", "demo"):
        assert re.search(rf"^  {command}\b", done.stdout, re.MULTILINE), command
    assert seconds < 2


def test_no_public_name_is_hidden_by_a_file_of_its_name():
    """Importing ``vidlit.models.registry`` sets ``registry`` on the package, before its lazy names are asked."""
    faces = [path for path in PACKAGE.rglob("__init__.py") if "attach(__name__" in path.read_text()]
    assert len(faces) > 10
    for face in faces:
        package = ".".join(("vidlit", *face.parent.relative_to(PACKAGE).parts))
        public = set(importlib.import_module(package).__all__)
        beside = {path.stem for path in face.parent.iterdir() if path.suffix == ".py" or path.is_dir()}
        assert not public & beside, package
