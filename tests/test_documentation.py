"""README and docs: every command and snippet runs, every option they name exists, the pages build without a warning.

A block may be left out by a comment on the line before its fence, ``<!-- not run: why -->``. Blocks of one page run in
order, in one folder that holds ``my_clips`` (a few small clips with captions) and ``configs``. Where a command trains,
it trains a few steps, on a tiny base where the config names one of the hub.
"""

import ast
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.test_families_fit import TINY
from vidlit.commands.cli.parse_only import ParseOnly

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*).*$")
NOT_RUN = re.compile(r"<!-- (not run: .+|quickstart command|test command) -->")  # the latter two are what .ci/run runs
OPTION = re.compile(r"(?<![\w-])--([a-z_]+(?:\.[a-z_]+)+)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    run: bool


def blocks_of(page):
    """All fenced blocks, in order."""
    blocks, lines = [], page.read_text().splitlines()
    number = 0
    while number < len(lines):
        opening = FENCE.match(lines[number])
        if opening:
            first = number + 1
            closing = next(k for k in range(first, len(lines)) if lines[k].strip() == "```")
            text = "\n".join(line.removeprefix(opening["indent"]) for line in lines[first:closing]) + "\n"
            before = next((line for line in reversed(lines[:number]) if line.strip()), "")
            blocks.append(Block(page, number + 1, opening["language"], text, not NOT_RUN.search(before)))
            number = closing
        number += 1
    return blocks


def name_of(page):
    return page.relative_to(ROOT).with_suffix("").as_posix()


def test_blocks_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "text\n```bash\nls\n```\n<!-- not run: it is long -->\n\n```python\nx = 1\n```\n"
        "- item\n  ```yaml\n  a: 1\n  ```\n"
    )
    assert [(b.language, b.text, b.run, b.line) for b in blocks_of(page)] == [
        ("bash", "ls\n", True, 2),
        ("python", "x = 1\n", False, 7),
        ("yaml", "a: 1\n", True, 11),
    ]


@pytest.fixture(scope="module")
def known_options():
    """Every option of every command that reads a YAML file."""
    known = set()
    for command in ParseOnly.subcommands():
        parser = ParseOnly([command, "--config", str(ROOT / "configs" / "quickstart.yaml")])._parser(command)
        known |= {option.removeprefix("--") for action in parser._actions for option in action.option_strings}
    return known


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_named_on_a_page_exist(page, known_options):
    named = set(OPTION.findall(page.read_text()))
    # Options below a class that a config names (an optimizer's rate) are checked where blocks run.
    unknown = {name for name in named if not any(name == k or name.startswith(f"{k}.") for k in known_options)}
    assert not unknown


YAML = [b for page in PAGES for b in blocks_of(page) if b.language == "yaml" and b.run]


@pytest.mark.parametrize("block", YAML, ids=lambda b: f"{name_of(b.page)}:{b.line}")
def test_yaml_on_a_page_is_accepted(block, tmp_path):
    path = tmp_path / "block.yaml"
    path.write_text(block.text)
    assert isinstance(yaml.safe_load(block.text), dict)
    ParseOnly(["fit", "--config", str(ROOT / "configs" / "quickstart.yaml"), "--config", str(path)])


# -- messages that a page explains

MESSAGE = re.compile(r"\*\*(`+)(.+?)\1\*\*")
MESSAGES = [found[1] for found in MESSAGE.findall((ROOT / "docs" / "troubleshooting.md").read_text())]


@pytest.fixture(scope="module")
def texts_of_the_package():
    """Every text in its code, put together as it will be, with a blank for each value that is filled in."""
    texts = []
    for path in (ROOT / "vidlit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values))
    return texts


def test_many_messages_are_explained():
    assert len(MESSAGES) > 40


@pytest.mark.parametrize("message", MESSAGES)
def test_explained_messages_are_in_the_code(message, texts_of_the_package):
    parts = [re.escape(part.strip()) for part in message.split("...") if part.strip()]
    pattern = re.compile(".*".join(parts), re.DOTALL)
    assert any(pattern.search(text) for text in texts_of_the_package)


# -- running

SHIM = """\
#!{python}
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.test_documentation import shortened
from vidlit.__main__ import main

sys.exit(main(shortened(sys.argv[1:])))
"""


def shipped_name(config):
    """Of a shipped config, or of the one that `vidlit init` filled in."""
    filled_in = (
        re.search(r"^# The shipped (\w+) filled in", config.read_text(), re.MULTILINE) if config.is_file() else None
    )
    return filled_in[1] if filled_in else config.stem


def shortened(words):
    """A command as the page has it, with less work: a few steps, and a tiny base where it would fetch one."""
    if not words or words[0] not in (*ParseOnly.subcommands(), "plan"):
        return words
    configs = [Path(words[k + 1]) for k, word in enumerate(words[:-1]) if word == "--config"]
    options = {"data.encoding.num_workers": 1} if words[0] != "plan" else {}
    for config in configs:
        name = shipped_name(config)
        if name in TINY:
            make, size = TINY[name]
            base = Path("tiny_bases", name)
            if not base.is_dir():
                make(base)
            options |= {"model.base": base, "data.buckets": f"[{size}]", "data.fps": 16, "data.split.val_fraction": 0.5}
            options |= {"trainer.accelerator": "cpu", "trainer.devices": 1, "trainer.precision": "32-true"}
            options |= {"data.cutting.upscale": "true"}
        if config.stem in ("demo_base", "demo_lora"):
            options |= {"demo.num_videos": 16}
    if words[0] == "fit":
        options |= {"trainer.max_steps": 6, "trainer.val_check_interval": 3, "samples.num_audit": 0}
        options |= {"trainer.accumulate_grad_batches": 1}
        options |= {"samples.num_videos": 1, "samples.num_steps": 2}
    return [*words, *(f"--{key}={value}" for key, value in options.items())]


@pytest.fixture
def place(tmp_path, demo, monkeypatch):
    """A folder as a page assumes it, with `vidlit` and `python` on the path."""
    programs = tmp_path / "programs"
    programs.mkdir()
    shim = programs / "vidlit"
    shim.write_text(SHIM.format(python=sys.executable, root=str(ROOT)))
    shim.chmod(0o755)
    python = programs / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')  # a link would not find its environment
    python.chmod(0o755)
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "my_clips").symlink_to(demo.dir / "clips")
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


RUNNABLE = [page for page in PAGES if any(b.run and b.language in ("bash", "python") for b in blocks_of(page))]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # the tutorial has a dozen commands
@pytest.mark.parametrize("page", RUNNABLE, ids=name_of)
def test_commands_and_snippets_of_a_page_run(page, place):
    for block in blocks_of(page):
        if not block.run or block.language not in ("bash", "python"):
            continue
        text = block.text.replace(".venv/bin/", "")
        words = ["bash", "-euo", "pipefail", "-c", text] if block.language == "bash" else ["python", "-c", text]
        done = subprocess.run(words, cwd=place, capture_output=True, text=True, timeout=300)
        where = f"{name_of(page)}, line {block.line}:\n{block.text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        assert done.returncode == 0, where


@pytest.mark.slow
def test_pages_build_without_a_warning(tmp_path):
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "site" / "index.html").stat().st_size > 5000
