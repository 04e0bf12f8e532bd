"""How long a fit of 36 M parameters waits for latents that lie on object storage, beside the same from a folder.

    python benchmarks/object_storage.py                  # each answer of the server comes 50 ms late, as S3's do
    python benchmarks/object_storage.py --latency 0.2    # one on another continent

A real S3 server (moto's) in a process of its own on this machine, which takes CPU time from the training beside it. The
quickstart's clips are encoded into it; then `vidlit fit` with two loader workers reads them: with nothing in the local
cache, with all of it there, and from a local folder. Printed is the share of the time that training waited for its
loader after the first steps, in which workers start, connect and fill their queues (`perf/data_wait`), and the
requests.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

from benchmarks.step_overhead import BUCKETS, CONFIG, resize
from vidlit.__main__ import main as vidlit
from vidlit.data.demo_folder import Demo
from vidlit.runs import RunRecord

STEPS, LOGGED_EVERY = 40, 8
KEYS = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


def serve(latency: float, port, requests) -> None:
    """An S3 server whose answers are late."""
    import logging

    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = DomainDispatcherApplication(create_backend_app)

    def late(environ, start_response):
        requests.value += 1
        time.sleep(latency)
        return app(environ, start_response)

    server = make_server("127.0.0.1", 0, late, threaded=True)
    port.value = server.server_port
    server.serve_forever()


def waited(folder: Path, store: str, cache: Path, name: str) -> float:
    """Share of its time that a fit waited for its loader, without the first steps."""
    options = {
        "demo": "null",
        "data.source": folder / "demo" / "clips",
        "data.store": store,
        "data.cache.folder": cache,
        "data.buckets": f"[{','.join(BUCKETS)}]",
        "data.batches.num_workers": 2,
        "model.base": folder / "demo" / "base",
        "run.dir": folder / "runs",
        "run.name": name,
        "trainer.max_steps": STEPS,
        "trainer.log_every_n_steps": LOGGED_EVERY,
        "trainer.val_check_interval": 1_000_000,
        "samples.num_videos": 0,
        "samples.num_audit": 0,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        code = vidlit(["fit", "--config", str(CONFIG), *(f"--{name}={value}" for name, value in options.items())])
    assert code == 0, code
    shares = RunRecord(folder / "runs" / name / "0").curve("perf/data_wait").values[1:]
    return sum(shares) / len(shares)


def main() -> None:
    """Print shares and requests of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds before each answer")
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    port, requests = context.Value("i", 0), context.Value("i", 0)
    server = context.Process(target=serve, args=(given.latency, port, requests), daemon=True)
    server.start()
    while not port.value:
        time.sleep(0.05)
    os.environ |= KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port.value}"}
    import s3fs

    s3fs.S3FileSystem().mkdir("bench")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Demo(folder / "demo", num_videos=16, clips_per_video=4).write()
        parameters = resize(folder / "demo" / "base", heads=16, num_layers=8)
        print(f"{parameters / 1e6:.0f} M parameters, {STEPS} steps, answers after {given.latency * 1e3:.0f} ms")
        waited(folder, "s3://bench/store", folder / "encoding", "encoding")
        for what, store, cache in (
            ("object storage, nothing in the cache", "s3://bench/store", "cold"),
            ("object storage, all in the cache", "s3://bench/store", "cold"),
            ("a local folder", str(folder / "latents"), "none"),
        ):
            before = requests.value
            share = waited(folder, store, folder / cache, what.replace(", ", "-").replace(" ", "-"))
            print(f"{what}: waited {share:.2%} of the time; {requests.value - before} requests in all")
    server.kill()


if __name__ == "__main__":
    main()
