"""Links within the repository, of files that mkdocs does not build, and the paths that they name."""

import re
from pathlib import Path

import pytest
from markdown.extensions.toc import slugify

import vidlit

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", ".github/pull_request_template.md")]
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)")
PATH = re.compile(r"`((?:vidlit|docs|tests|configs|examples|benchmarks|notebooks)/[\w./-]*)`")
TREE = re.compile(r"^ {4}( {2})?([\w/]+/) {2,}\S", re.MULTILINE)


def anchors(page):
    return {slugify(heading, "-") for heading in re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)}


def broken(page):
    """Links of a page to what is not there."""
    found = []
    for target, anchor in LINK.findall(page.read_text()):
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            found.append(f"{target}#{anchor}")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    assert broken(page) == []


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.stem)
def test_paths_named_in_the_text_are_there(page):
    named = set(PATH.findall(page.read_text()))
    assert named
    assert {path for path in named if not (ROOT / path).exists()} == set()


def test_files_of_the_map_are_there():
    named = set(re.findall(r"`(\w+\.py)`", (ROOT / "CONTRIBUTING.md").read_text()))
    assert len(named) > 20
    assert named <= {path.name for path in Path(vidlit.__file__).parent.rglob("*.py")}


def test_the_tree_has_every_room():
    tree = (ROOT / "CONTRIBUTING.md").read_text().partition("## Where things are")[2].partition("\n## ")[0]
    tree = {name.rstrip("/") for indent, name in TREE.findall(tree) if indent}
    assert tree == {path.parent.name for path in Path(vidlit.__file__).parent.glob("*/__init__.py")}


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A heading\n[a](#a-heading) [b](#none) [c](page.md#a-heading) [d](gone.md) [e](https://x.y/z)\n")
    assert broken(page) == ["#none", "gone.md#"]
