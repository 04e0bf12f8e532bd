"""Who may know whom: the table of the architecture, held against every import in the package."""

import ast
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import vidlit

PACKAGE = Path(vidlit.__file__).parent
LIGHTNING = {"lightning"}
ARRAYS = {"torch", "numpy"}
ANYONE = {"vidlit.errors", "vidlit.run_directory", "vidlit.redaction"}  # small rooms without dependencies

# Room (a file, or a folder ending in "/") -> what it may import beside the standard library, itself and ANYONE.
# A more exact room adds to its folder's row.
MAY_IMPORT = {
    "errors.py": set(),
    "run_directory.py": set(),
    "__init__.py": set(),
    "__main__.py": {"vidlit.__version__", "vidlit.commands"},
    "data/": ARRAYS | {"av", "safetensors", "pyarrow", "PIL", "imagehash", "filelock", "rich"},
    "data/datamodule.py": LIGHTNING | {"vidlit.models.family", "vidlit.models.encoders"},  # hands them to encode.py
    "data/prompts.py": LIGHTNING | {"vidlit.models.encoders"},  # encodes them before the transformer is loaded
    "data/encode.py": LIGHTNING | {"diffusers", "transformers", "vidlit.models.family"},
    "data/progress.py": LIGHTNING,  # encode.py's progress bar
    "diffusion/": ARRAYS | {"vidlit.data.batch"},
    "diffusion/generate.py": {"diffusers"},
    "models/": ARRAYS
    | {"diffusers", "transformers", "peft", "safetensors", "torchao", "vidlit.diffusion", "vidlit.data.batch"},
    "metrics/": ARRAYS | {"torchmetrics", "transformers"},
    "stopping/": ARRAYS,
    "optimizers.py": ARRAYS,
    "flops.py": ARRAYS,
    "checkpoint_files.py": ARRAYS | LIGHTNING,
    "module.py": ARRAYS
    | LIGHTNING
    | {
        f"vidlit.{room}"
        for room in ("diffusion", "models", "metrics", "data.batch", "optimizers", "flops", "checkpoint_files")
    },
    "callbacks/": ARRAYS
    | LIGHTNING
    | {"rich", "PIL"}
    | {
        f"vidlit.{room}"
        for room in (
            "metrics",
            "stopping",
            "diffusion",
            "data.batch",
            "data.video",
            "csv_logger",
            "background_logger",
            "run_record",
            "model_card",
            "flops",
            "checkpoint_files",
            "models.memory",
        )
    },
    "callbacks/wandb_record.py": {"wandb", "yaml", "vidlit.__version__"},
    "csv_logger.py": LIGHTNING,
    "background_logger.py": LIGHTNING,
    "launch.py": LIGHTNING | {"torch"},
    "plan.py": {"rich", "vidlit.data", "vidlit.stopping"},
    "redaction.py": set(),
    "refit.py": set(),
    "kfold.py": {"rich", "vidlit.refit"},
    "run_record.py": ARRAYS | {"yaml", "vidlit.stopping", "vidlit.data.batch"},
    "report/": {"numpy", "yaml", "jinja2", "markupsafe", "matplotlib", "vidlit.__version__", "vidlit.run_record"}
    | {"vidlit.stopping"},
    "dashboard.py": {"yaml", "wandb_workspaces"},
    "model_card.py": {"yaml", "numpy", "matplotlib", "huggingface_hub", "vidlit.__version__", "vidlit.run_record"},
    "predict.py": {f"vidlit.{room}" for room in ("callbacks", "data", "models.adapters", "module")},
    "demo.py": ARRAYS | {"diffusers", "transformers", "vidlit.data.video", "vidlit.models.codec"},
    "cli.py": ARRAYS | LIGHTNING | {"jsonargparse", "rich", "wandb", "yaml", "vidlit"},
    "trainer.py": ARRAYS
    | LIGHTNING
    | {f"vidlit.{room}" for room in ("callbacks", "checkpoint_files", "data", "module", "plan")},
    "commands.py": LIGHTNING | {"jsonargparse", "vidlit"},
}
LAZY_ONLY = {"diffusers", "transformers", "wandb", "peft", "huggingface_hub"}
"""Take seconds to import: only inside functions, except where a class derives from theirs."""
EAGER = {"models/codec.py"}


def is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports_of(path, top_level_only=False):
    """Dotted names that a file imports when it runs: modules, and names taken from packages of ours."""
    names = set()

    def visit(node):
        if is_type_checking(node):
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


def allowed_for(file):
    """Names a file may import, and its own room."""
    room = file.split("/")[0] + "/" if "/" in file else file
    assert room in MAY_IMPORT, f"{file}: no such room in the table; say what it may import"
    own = {f"vidlit.{room[:-1]}"} if room.endswith("/") else set()
    return ANYONE | own | MAY_IMPORT[room] | MAY_IMPORT.get(file, set())


def forbidden(file, names):
    allowed = allowed_for(file)
    return sorted(name for name in names if not any(name == a or name.startswith(f"{a}.") for a in allowed))


FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES)
def test_file_imports_what_its_room_may(file):
    assert forbidden(file, imports_of(PACKAGE / file)) == []


def test_the_rule_finds_what_it_forbids(tmp_path):
    source = tmp_path / "code.py"
    source.write_text(
        "import json\nfrom typing import TYPE_CHECKING\nimport lightning.pytorch as pl\n"
        "if TYPE_CHECKING:\n    from vidlit.module import VideoDiffusionModule\n"
        "def f():\n    from vidlit.module import x\n    from vidlit import cli\n"
    )
    names = imports_of(source)
    assert names == {"lightning.pytorch", "vidlit.module.x", "vidlit.cli"}
    assert imports_of(source, top_level_only=True) == {"lightning.pytorch"}
    assert forbidden("metrics/paired_loss.py", names) == ["lightning.pytorch", "vidlit.cli", "vidlit.module.x"]
    assert forbidden("callbacks/exposure.py", names) == ["vidlit.cli", "vidlit.module.x"]
    assert forbidden("module.py", {"vidlit.data.batch.LatentBatch", "vidlit.data.batches.x"}) == [
        "vidlit.data.batches.x"
    ]


def typing_imports_of(path):
    tree = ast.parse(path.read_text())
    blocks = [node for node in ast.walk(tree) if is_type_checking(node)]
    inner = [node for block in blocks for node in ast.walk(block) if isinstance(node, ast.ImportFrom)]
    return {node.module for node in inner}


def test_only_callbacks_name_the_module_for_typing():
    namers = {file for file in FILES if "vidlit.module" in typing_imports_of(PACKAGE / file)}
    assert namers
    assert all(file.startswith("callbacks/") for file in namers)


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
