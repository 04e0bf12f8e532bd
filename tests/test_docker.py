"""The Dockerfile by its steps, where no Docker is: what it copies is there, what it runs and starts does."""

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "guides" / "docker.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions():
    """Each as (name, what follows); continued lines are one, comments are gone."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


STEPS = instructions()


def steps(name):
    return [rest for instruction, rest in STEPS if instruction == name]


def copies():
    """(source, target), one each."""
    for rest in steps("COPY"):
        *sources, target = rest.split()
        yield from ((source, target) for source in sources)


def is_sent(name):
    """Whether Docker is given a file: the last pattern that fits says."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if not line or line.startswith("#"):
            continue
        paths = [name, *(parent.as_posix() for parent in PurePosixPath(name).parents)]
        if any(fnmatch.fnmatch(path, pattern) for path in paths) or fnmatch.fnmatch(f"/{name}", f"*/{pattern[3:]}/*"):
            sent = line.startswith("!")
    return sent


def test_the_instructions_are_those_that_docker_knows():
    known = {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in STEPS} <= known
    assert STEPS[0] == ("ARG", "PYTHON=3.11")
    assert STEPS[1] == ("FROM", "python:${PYTHON}-slim")
    assert PROJECT["requires-python"] == ">=3.11"


def test_what_is_copied_is_there_and_sent():
    found = list(copies())
    assert {source for source, _ in found} >= {"vidlit", "configs", "constraints.txt", "pyproject.toml"}
    for source, _ in found:
        assert (ROOT / source).exists(), source
        assert is_sent(source), source


def test_nothing_else_is_sent(tracked):
    copied = {source for source, _ in copies()}
    assert {name.partition("/")[0] for name in tracked if is_sent(name)} == copied
    for private in (
        ".git/config",
        ".venv/bin/python",
        "my_clips/a.mp4",
        "runs/x/0/config.yaml",
        "vidlit/__pycache__/a",
    ):
        assert not is_sent(private), private


def test_the_package_has_what_building_it_takes():
    """README and licence, which pyproject.toml names, are copied before the package is installed."""
    before = STEPS[: next(number for number, (name, rest) in enumerate(STEPS) if "pip install" in rest)]
    copied = {source for name, rest in before if name == "COPY" for source in rest.split()[:-1]}
    assert {PROJECT["readme"], *PROJECT["license-files"], "configs", "vidlit", "constraints.txt"} <= copied


def test_every_extra_it_installs_exists():
    (command,) = (rest for rest in steps("RUN") if "pip install" in rest)
    (extras,) = re.findall(r"\.\[([\w,]+)\]", command)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])


def test_the_page_builds_what_the_file_says():
    args = dict(rest.partition("=")[::2] for rest in steps("ARG"))
    assert args["DEVICE"] == "cpu"
    named = set(re.findall(r"--build-arg (\w+)=", PAGE + (ROOT / "Dockerfile").read_text()))
    assert named == {"DEVICE"}
    assert set(re.findall(r"DEVICE=(\w+)", PAGE)) == {"cuda"}
    assert set(re.findall(r'"\$DEVICE" = (\w+)', " ".join(steps("RUN")))) == {"cpu", "cuda"}
    assert all(folder in " ".join(steps("RUN")) for folder in ("/cache", "/work"))  # that the page mounts


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the steps are a shell's")
def test_the_steps_run_one_after_the_other(tracked, tmp_path):
    """Copied, installed by the very command, and started; packages come from this environment, not from an index."""
    opt = tmp_path / "opt"
    for name in filter(is_sent, tracked):
        for source, target in copies():
            if name == source or name.startswith(f"{source}/"):
                place = opt / target / name if target == "./" else opt / target / name.removeprefix(f"{source}/")
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, place)
    environment_folder = tmp_path / "environment"
    venv.create(environment_folder)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(environment_folder)}))
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    programs = environment_folder / "bin"
    pip = programs / "pip"  # this environment's, for that one: the one that comes with Python has old build tools
    pip.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pip --python "{programs / "python"}" "$@"\n')
    pip.chmod(0o755)
    settings = dict(word.split("=") for word in shlex.split(" ".join(steps("ENV"))))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {**settings, "PATH": f"{programs}:{os.environ['PATH']}", "DEVICE": "cpu", "HOME": str(tmp_path)}
    environment |= {"HF_HOME": str(tmp_path / "cache"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}  # the latter is pip's way of saying so

    def run(words, folder, more=()):
        done = subprocess.run(
            words, cwd=folder, env={**environment, **dict(more)}, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    (command,) = (rest for rest in steps("RUN") if "pip install" in rest)
    run(["sh", "-ec", command], opt, offline.items())
    assert sorted(path.name for path in opt.iterdir()) == sorted({source for source, _ in copies()})
    work = tmp_path / "work"
    work.mkdir()
    entry, default = (json.loads(steps(name)[0]) for name in ("ENTRYPOINT", "CMD"))
    assert entry[0] in PROJECT["scripts"]
    entry[0] = str(programs / entry[0])
    assert "start here" in run([*entry, *default], work)
    where = run([programs / "python", "-c", "import vidlit; print(vidlit.__file__)"], work)
    assert where.startswith(str(environment_folder))
    assert "LTX-Video 2B" in run([*entry, "init"], work)
    assert "16 recordings" in run([*entry, "plan", "--config", "quickstart"], work)


def test_shell_steps_are_a_shells():
    for command in steps("RUN"):
        done = subprocess.run(["sh", "-n", "-c", command], capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert sys.version_info >= (3, 11)
