"""From clips in a bucket to weights, with the latents in another place of it: the command line and a real S3 server."""

import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import quickstart_words
from vidlit.__main__ import main
from vidlit.latents.storage.opening import StoreCache
from vidlit.latents.store import LatentStore
from vidlit.runs import RunRecord


@pytest.mark.slow
def test_encode_kill_resume_fit_verify_repair(demo, bucket, tmp_path, capsys):
    url, fs = bucket
    fs.put(f"{demo.dir / 'clips'}/", f"{url}/clips/", recursive=True)
    places = {"data.source": f"{url}/clips", "data.cache.folder": tmp_path / "cache"}
    fit = quickstart_words(demo, f"{url}/latents", tmp_path / "runs")(**places, **{"data.batches.num_workers": 2})
    encode = [
        "encode",
        *(word for word in fit[1:] if word.startswith(("--config", "--data", "--model.base", "--demo"))),
    ]
    encode.insert(2, fit[2])  # the config

    slowly = [sys.executable, "-m", "vidlit", *encode, "--data.encoding.shard_bytes=1"]
    process = subprocess.Popen(slowly, stderr=subprocess.DEVNULL)
    try:
        for _ in range(1200):
            if len(fs.glob(f"{url}/latents/shards/*")) >= 3:
                break
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    stored = LatentStore(f"{url}/latents", StoreCache(tmp_path / "other")).keys("latent")
    assert 2 <= len(stored) < 12

    assert main(fit) == 0
    assert f"{len(stored)} clips were stored before, 0 quarantined" in capsys.readouterr().out
    (run,) = (tmp_path / "runs" / "quickstart").iterdir()
    config = (run / "config.yaml").read_text()
    assert f"source: {url}/clips" in config
    assert "hidden" not in config  # the secret key of the server
    assert len(RunRecord(run).curve("val/loss").values) >= 3

    assert main([*encode, "--verify"]) == 0
    assert "all checksums match" in capsys.readouterr().out
    name = fs.ls(f"{url}/latents/shards")[0]
    fs.pipe(name, fs.cat(name)[:-1] + b"\x55")
    assert main([*encode, "--verify"]) == 2
    assert main([*encode, "--repair"]) == 0
    assert main([*encode, "--verify"]) == 0
    assert "all checksums match" in capsys.readouterr().out
