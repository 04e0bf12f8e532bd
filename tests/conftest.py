import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import uuid
import venv
from pathlib import Path

import platformdirs
import pytest
import torch

from vidlit.__main__ import main
from vidlit.data.demo_folder import Demo

torch.set_num_threads(1)  # the models are too small to share

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"


def pytest_runtest_setup(item):
    """Tests for a GPU are collected everywhere, and say where they cannot run."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")


@pytest.fixture(autouse=True)
def caches(tmp_path_factory, monkeypatch):
    """What the user's caches are for a test, in its own process: a folder of its own, made when it is asked for."""
    made = []

    def user_cache_path(*names):
        if not made:
            made.append(tmp_path_factory.mktemp("caches"))
        return made[0].joinpath(*names)

    monkeypatch.setattr(platformdirs, "user_cache_path", user_cache_path)


@pytest.fixture(scope="session")
def shared_videos():
    """Small real clips that lie beside a checkout on some machines; tests that need them skip elsewhere."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "videos"
    if not folder.is_dir():
        pytest.skip("no shared videos beside this checkout")
    return folder


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """A small demo: 6 source videos of 2 clips, in 4 resolutions, and the tiny base model."""
    made = Demo(tmp_path_factory.mktemp("demo"), num_videos=6, clips_per_video=2)
    made.write()
    return made


@pytest.fixture(scope="session")
def latents(tmp_path_factory):
    """A store that all tests on the demo fill and share, as runs of one user do."""
    return tmp_path_factory.mktemp("latents")


def quickstart_words(demo, latents, runs):
    """Makes the words of a `fit` of the shipped quickstart, made small: 12 steps, a check every 4."""

    def words(command="fit", **overrides):
        options = {
            "demo": "null",
            "data.source": demo.dir / "clips",
            "data.store": latents,
            "data.encoding.num_workers": 1,
            "data.batches.size": 2,
            "model.base": demo.dir / "base",
            "model.warmup_steps": 2,
            "run.dir": runs,
            "run.report": False,
            "trainer.max_steps": 12,
            "trainer.val_check_interval": 4,
            "trainer.log_every_n_steps": 1,
            "samples.num_videos": 0,
            "samples.num_audit": 0,
            **{key.replace("__", "."): value for key, value in overrides.items()},
        }
        return [command, "--config", str(CONFIGS / "quickstart.yaml"), *(f"--{k}={v}" for k, v in options.items())]

    return words


@pytest.fixture
def quickstart(demo, latents, tmp_path):
    """Words of a small `fit` whose runs lie in `tmp_path`."""
    return quickstart_words(demo, latents, tmp_path / "runs")


@pytest.fixture(scope="session")
def finished_run(demo, latents, tmp_path_factory):
    """A run directory with everything in it: checks, audits, samples, a report. Tests that change it copy it first."""
    runs = tmp_path_factory.mktemp("finished")
    words = quickstart_words(demo, latents, runs)(
        run__report=True,
        samples__num_videos=2,
        samples__num_audit=4,
        samples__every_num_checks=1,
        samples__num_steps=2,
    )
    assert main(words) == 0
    return runs / "quickstart" / "0"


@pytest.fixture(scope="session")
def tracked():
    """Every file of the checkout that git knows or would add, relative to it; of a source archive, every file."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True) if (ROOT / ".git").exists() else None
    if found is not None and found.returncode == 0:
        return sorted(name for name in found.stdout.split("\0") if name and (ROOT / name).is_file())
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file())


@pytest.fixture(scope="session")
def built(tracked, tmp_path_factory):
    """The source archive, and the wheel that is made of it, of a copy of the checkout: `.tar.gz`, `.whl`."""
    copy = tmp_path_factory.mktemp("checkout") / "vidlit"
    for name in tracked:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    out = copy.parent / "dist"
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out)]
    done = subprocess.run(words, cwd=copy, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (archive,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return archive, wheel


@pytest.fixture(scope="session")
def installed(built, tmp_path_factory):
    """The bin folder of an environment that holds the wheel, and sees the packages of this one but not its checkout."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=os.name != "nt")
    # What lies in the folder that a .pth file names is found; .pth files in there, an editable install's, are not read.
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    programs = Path(sysconfig.get_path("scripts", vars={"base": str(folder)}))
    words = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "install", "--quiet", "--no-deps"]
    subprocess.run([*words, "--no-index", str(built[1])], check=True, timeout=300)
    return programs


@pytest.fixture(scope="session")
def s3_server():
    """A real S3 server on this machine, in a thread; what connects to it is set as users set it."""
    moto = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    told = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "hidden",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    yield
    server.stop()
    for name, value in before.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@pytest.fixture
def bucket(s3_server):
    """The URL of a new bucket, and a file system that sees it."""
    import s3fs

    fs, name = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False), f"test-{uuid.uuid4().hex}"
    fs.mkdir(name)
    yield f"s3://{name}", fs
    fs.rm(name, recursive=True)
