"""What is promised of versions, and the files that tools outside Python read."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import vidlit

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def pins(file):
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("line", [*PROJECT["dependencies"], *EXTRAS])
def test_every_dependency_is_pinned_within_its_bounds(line):
    requirement = Requirement(line)
    assert requirement.specifier.contains(pins("constraints.txt")[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("line", PROJECT["dependencies"])
def test_the_lowest_versions_are_the_bounds(line):
    """So that what CI tries is what is promised."""
    requirement = Requirement(line)
    (bound,) = requirement.specifier
    assert bound.operator == ">="
    assert pins("constraints-lowest.txt")[canonicalize_name(requirement.name)] == Version(bound.version)


def test_what_the_makefile_lists_is_there():
    text = (ROOT / "Makefile").read_text()
    listed = dict(re.findall(r"^([a-z-]+):.*## (.+)$", text, re.MULTILINE))
    assert {"install", "test", "test-fast", "lint", "docs", "bench", "coverage", "release"} <= set(listed)
    done = subprocess.run(["make", "--dry-run", *listed], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for folder in re.findall(r"\btests/\S+", text):
        assert (ROOT / folder).exists(), folder


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_name_what_is_there(path):
    jobs = yaml.safe_load(path.read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    paths = re.compile(r"(?:\btests/|\bconfigs/|\bconstraints[\w-]*\.|\.ci/)[\w/.-]+")
    named = {word for command in commands for word in paths.findall(command)}
    assert named
    assert {name for name in named if not (ROOT / name).exists()} == set()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {target for command in commands for target in re.findall(r"make (\S+)", command)} <= targets
    lowest = Version(PROJECT["requires-python"].removeprefix(">="))
    tried = jobs["suite"]["strategy"]["matrix"]["python"]
    assert min(map(Version, tried)) == lowest


def test_the_version_is_the_same_everywhere():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == vidlit.__version__ == PROJECT["version"]
