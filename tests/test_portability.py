"""What only Linux has is not needed: the package works in a Python that lacks it, as those of Windows and macOS do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vidlit

PACKAGE = Path(vidlit.__file__).parent

LACKING = """
import os, signal, sys
import psutil  # has other ways elsewhere than the module that it takes here
for name in ("fcntl", "resource"):
    sys.modules[name] = None  # importing it fails
for module, names in {
    os: (
        "sched_getaffinity sched_setaffinity preadv pwritev pread pwrite posix_fadvise posix_fallocate memfd_create "
        "O_DIRECTORY fdatasync sendfile copy_file_range splice mkfifo getpgid setsid statvfs nice"
    ),
    signal: "SIGUSR1 SIGUSR2 SIGALRM SIGHUP SIGQUIT SIGPIPE setitimer alarm pause sigwait",
}.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
"""
"""Runs before all else in a Python, and in those that it starts. What torch itself needs on Linux stays."""

VIDLIT = """
import signal, sys, types
from lightning.pytorch.trainer.connectors import signal_connector
# Lightning goes by the system's name, not by what it lacks.
signal_connector.signal = types.SimpleNamespace(**vars(signal), SIGUSR1=signal.Signals["SIGUSR1"])
from vidlit.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def lacking(tmp_path):
    """Runs Python code where these are missing; returns what it printed."""
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "sitecustomize.py").write_text(LACKING)
    path = os.pathsep.join([str(tmp_path / "without"), str(PACKAGE.parent)])

    def run(code, *words):
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run([sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_every_module_can_be_imported(lacking):
    files = (path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob("*.py"))
    modules = sorted(".".join(file.parts).removesuffix(".__init__") for file in files if file.stem != "__main__")
    assert len(modules) > 100
    code = "import importlib, os; [importlib.import_module(m) for m in {}]; print(hasattr(os, 'preadv'))"
    assert lacking(code.format(modules)) == "False\n"


@pytest.mark.slow
def test_plan_encode_and_fit(lacking, quickstart, tmp_path):
    few = {"data__buckets": "[9x48x48]", "data__store": tmp_path / "latents", "trainer__max_steps": 2}
    planned = json.loads(lacking(VIDLIT, *quickstart("plan", **few), "--json"))
    assert planned["encode"]["decode_seconds"] > 0
    assert "18 clips and 6 captions encoded" in lacking(VIDLIT, *quickstart("encode", **few))
    lacking(VIDLIT, *quickstart("fit", **few, trainer__val_check_interval=2))
    summary = json.loads((tmp_path / "runs" / "quickstart" / "0" / "summary.json").read_text())
    assert summary["stop_step"] == 2
