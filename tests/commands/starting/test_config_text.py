"""Single values of a file change; the rest stays."""

import pytest
import yaml

from vidlit.commands.starting.config_text import with_value

TEXT = """\
# head

run:
  dir: runs
  name: one                   # its name

model:
  base: a/b  # a name
  memory:
    base_dtype: bfloat16      # of what is frozen
  # noise: left out
  conditions:
    - {frames: first}   # a tenth

trainer:
  max_steps: 3000
"""


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("run.name", "two", "  name: two                   # why"),
        ("model.base", "/a b/c: d", "  base: '/a b/c: d'           # why"),
        ("model.memory.base_dtype", "int8", "    base_dtype: int8          # why"),
        ("trainer.max_steps", 500, "  max_steps: 500              # why"),
        ("trainer.devices", 2, "  devices: 2                  # why"),
        ("run.tags", ["a", "b"], "  tags: [a, b]                # why"),
        ("exposure.hard_cap", 20.0, "  hard_cap: 20.0              # why"),
    ],
)
def test_one_line_changes(name, value, line):
    changed = with_value(TEXT, name, value, "why")
    assert line in changed.splitlines()
    expected = yaml.safe_load(TEXT)
    *above, last = name.split(".")
    inner = expected
    for part in above:
        inner = inner.setdefault(part, {})
    inner[last] = value
    assert yaml.safe_load(changed) == expected
    assert changed.count("#") >= TEXT.count("#")


def test_a_long_line_gets_its_comment_above():
    changed = with_value(TEXT, "run.name", "x" * 100, "because it is long")
    assert f"  # because it is long\n  name: {'x' * 100}\n" in changed


def test_what_is_added_stands_in_its_section():
    changed = with_value(TEXT, "model.layers.inner", "a", "why")
    assert changed.index("inner: a") < changed.index("trainer:")
    assert yaml.safe_load(changed)["model"]["layers"] == {"inner": "a"}
