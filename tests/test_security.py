"""SECURITY.md names a test for each line, and each is there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "SECURITY.md").read_text()


def defined_in(path):
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_line_names_a_test_that_is_there():
    rows = [row for row in re.findall(r"^\|.*\|$", TEXT, re.MULTILINE) if not re.match(r"\|[-|]+$", row)]
    rules = [row for row in rows if not row.endswith("| test |")]
    assert len(rules) > 20
    for rule in rules:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", rule)
        assert len(named) == 1, rule
        (file, name) = named[0]
        assert name in defined_in(ROOT / file), rule
