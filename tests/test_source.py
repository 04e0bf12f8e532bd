"""Habits that the source keeps: what the type checker is told to overlook, and what is read of Lightning's insides."""

import ast
import re
from pathlib import Path

import lightning.pytorch

import vidlit
from vidlit import lightning_internals

PACKAGE = Path(vidlit.__file__).parent
SOURCES = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in PACKAGE.rglob("*.py")}
MOST_IGNORES = 30


def ignores():
    return [(file, line) for file, text in SOURCES.items() for line in text.splitlines() if "type: ignore" in line]


def test_the_type_checker_is_told_to_overlook_little():
    assert 0 < len(ignores()) <= MOST_IGNORES


def test_and_why_each_time():
    reason = re.compile(r"# type: ignore\[[a-z,-]+\]  # \w.{5,}")
    assert [(file, line.strip()) for file, line in ignores() if not reason.search(line)] == []


def private_names_of_lightning():
    """Attributes and methods that Lightning keeps to itself."""
    found = set()
    for path in Path(lightning.pytorch.__file__).parent.rglob("*.py"):
        text = path.read_text()
        found |= set(re.findall(r"\bself\.(_[a-z]\w*)", text)) | set(re.findall(r"\bdef (_[a-z]\w*)\(", text))
    return found


def own_private_names(tree):
    """What a file itself defines: methods, functions and attributes of its objects."""
    named = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    stored = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_stored(node)}
    return named | stored


def is_stored(node):
    return isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"


def read_of_lightning(text, private):
    tree = ast.parse(text)
    own = own_private_names(tree)
    accesses = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in private - own]
    return sorted({ast.unparse(node) for node in accesses if not ast.unparse(node.value).startswith("super()")})


def test_one_file_reads_lightnings_insides():
    private = private_names_of_lightning()
    users = {file: read_of_lightning(text, private) for file, text in SOURCES.items() if "lightning" in text}
    assert {file for file, names in users.items() if names} == {"lightning_internals.py"}


def test_the_rule_finds_what_it_forbids():
    private = private_names_of_lightning()
    assert read_of_lightning("loops = trainer.fit_loop._should_accumulate()", private) == [
        "trainer.fit_loop._should_accumulate"
    ]
    assert read_of_lightning("class A(ModelCheckpoint):\n    def f(self): self._save_last_checkpoint()", private)
    assert not read_of_lightning("class A(Callback):\n    def _save(self): ...\n    def f(self): self._save()", private)


def test_each_way_in_says_why():
    tree = ast.parse(Path(lightning_internals.__file__).read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert len(functions) > 5
    for function in functions:
        assert ":" in ast.get_docstring(function) or ";" in ast.get_docstring(function), function.name
