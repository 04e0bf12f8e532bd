"""What kills and full disks cost: nothing but work since the last save, or one line.

    python -m benchmarks.reliability --encode 100 --fit 60 --kfold 10 --refit 10 --full 20

A number of kills (SIGKILL) each, at file operations drawn at random: an open for writing, a rename, a removal, a new
folder. A killed command is given again until it ends; what is left is compared with what an undisturbed one left.
``--full`` gives a fit a disk of a random size too small for it (needs Linux and root, for a mount), then room to go on.

Processes are forked off one that has imported torch and Lightning, which takes longer than the runs themselves.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import safe_open

from vidlit.data.demo_folder import Demo
from vidlit.whole_files import UNFINISHED

CHANGING = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}
"""Python's audit events of what changes files, beside ``open`` for writing."""
SMALL = (
    "--demo=null",
    "--data.batches.size=2",
    "--data.encoding.num_workers=0",
    "--data.encoding.shard_seconds=0",
    "--trainer.log_every_n_steps=1",
    "--trainer.val_check_interval=2",
    "--samples.num_audit=0",
    "--samples.num_videos=1",
    "--samples.num_steps=2",
)


class Ended:
    """How a command ended.

    Args:
        status: of the process, as ``os.waitpid`` gives it.
        output: what it printed.
        operations: how many file operations it did; 0 where it was killed.
    """

    def __init__(self, status: int, output: str, operations: int) -> None:
        self.killed = os.WIFSIGNALED(status)
        self.code = -1 if self.killed else os.waitstatus_to_exitcode(status)
        self.output, self.operations = output, operations


def run(words: list[str], folder: Path, kill_at: int = 0) -> Ended:
    """Run a command in a process of its own.

    Args:
        words: of the command line.
        folder: where it runs, and whose files count.
        kill_at: number of the file operation that it does not live to do; 0 for none.
    """
    said, counted = folder.with_name("output.txt"), folder.with_name("operations.txt")
    counted.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)  # with all its workers
        with said.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(folder)
        count = _count_operations(folder, kill_at)
        from vidlit.__main__ import main as vidlit_main

        try:
            code = vidlit_main(words)
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        counted.write_text(str(count()))
        os._exit(code)
    _, status = os.waitpid(child, 0)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return Ended(status, said.read_text(), int(counted.read_text()) if counted.exists() else 0)


def _count_operations(folder: Path, kill_at: int) -> Callable[[], int]:
    own, inside, done = os.getpid(), str(folder), 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if event == "open":
            mode, flags = arguments[1], arguments[2]
            writes = any(letter in mode for letter in "wax+") if mode else bool(flags & (os.O_WRONLY | os.O_RDWR))
        else:
            writes = event in CHANGING
        if not writes or os.getpid() != own:
            return
        path = arguments[0]
        if isinstance(path, str | os.PathLike) and os.path.abspath(os.fspath(path)).startswith(inside):
            done += 1
            if done == kill_at:
                os.kill(own, signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: done


# -- what is compared


def store_of(folder: Path) -> dict[str, Any]:
    """Every stored tensor by what it was made of."""
    from vidlit.latents.store import LatentStore

    store = LatentStore(folder / "latents")
    assert not list(store.verify())
    found = {}
    for kind, tensor in (("latent", "latents"), ("prompt", "prompt_embeds")):
        keys = sorted(store.keys(kind))
        table = store.locate(kind, tensor, keys)
        found |= {key: table.read(row).float().numpy().tobytes() for row, key in enumerate(keys)}
    return found


def run_of(directory: Path) -> dict[str, Any]:
    """What an uninterrupted run and one that was killed again and again must have in common."""
    with (directory / "metrics.csv").open(newline="") as file:
        losses = [(float(row["step"]), row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    weights = {}
    for path in sorted((directory / "weights").rglob("*.safetensors")):
        with safe_open(path, "numpy") as file:
            weights |= {name: file.get_tensor(name).tobytes() for name in file.keys()}
    assert losses
    assert weights
    return {
        "losses": losses,
        "weights": weights,
        "exposures": (directory / "exposure.csv").read_text(),
        "decisions": (directory / "decisions.jsonl").read_text(),
        "checkpoints": sorted(path.name for path in (directory / "checkpoints").iterdir()),
        "unfinished": leftovers(directory),
    }


def folds_of(folder: Path) -> dict[str, Any]:
    """What all folds say."""
    return dict(json.loads(next(folder.rglob("folds.json")).read_text()))


def leftovers(folder: Path) -> list[str]:
    """Files that were begun and never ended."""
    return sorted(path.name for path in folder.rglob("*") if UNFINISHED.fullmatch(path.name))


# -- the scenes


def first_run(folder: Path) -> Path:
    """The run directory with a checkpoint, or the first one there will be."""
    found = sorted(path.parents[1] for path in (folder / "runs" / "quickstart").glob("*/checkpoints/last.ckpt"))
    return found[0] if found else folder / "runs" / "quickstart" / "0"


def words_of(command: str, folder: Path) -> list[str]:
    """The command line of a scene, which goes on where there is a checkpoint."""
    words = ["kfold" if command == "kfold" else "encode" if command == "encode" else "fit", "--config", "quickstart"]
    steps = {"encode": 12, "fit": 24, "kfold": 6, "refit": 8}[command]
    demo = folder.parent / "demo"
    words += [
        *SMALL,
        f"--data.source={demo / 'clips'}",
        f"--model.base={demo / 'base'}",
        f"--trainer.max_steps={steps}",
    ]
    if command == "kfold":
        words += ["--folds=2"]
    if command == "refit":
        words += ["--refit=true", "--overfit_stopping.policy={divergence: off}"]
    if command in ("fit", "refit") and (first_run(folder) / "checkpoints" / "last.ckpt").exists():
        words += ["--ckpt_path", "last"]
    return words


def result_of(command: str, folder: Path) -> dict[str, Any]:
    """What a scene has left."""
    match command:
        case "encode":
            return store_of(folder)
        case "kfold":
            return folds_of(folder)
        case "refit":
            whole = first_run(folder)
            again = whole / "refit"
            return {"first": run_of(whole), "again": run_of(again) if again.is_dir() else None}
        case _:
            return run_of(first_run(folder))


def undisturbed(command: str, place: Path) -> tuple[Path, Ended]:
    """A demo for all, and a command that nothing happens to."""
    Demo(place / "demo", num_videos=6, clips_per_video=2).write()
    whole = place / "whole"
    whole.mkdir()
    ended = run(words_of(command, whole), whole)
    assert ended.code == 0, ended.output
    return whole, ended


def kills(command: str, num_kills: int, seed: int, per_chain: int = 5) -> None:
    """Kill a command again and again, and compare."""
    dice = random.Random(f"{command} {seed}")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name).resolve()
        whole, ended = undisturbed(command, place)
        expected, killed, chain, wrong = result_of(command, whole), 0, 0, []
        while killed < num_kills:
            chain += 1
            folder = place / f"chain_{chain}"
            folder.mkdir()
            for _ in range(min(per_chain, num_kills - killed)):
                ended = run(words_of(command, folder), folder, kill_at=dice.randint(1, ended.operations or 100))
                killed += ended.killed
                if not ended.killed:
                    break
            ended = run(words_of(command, folder), folder)
            found = result_of(command, folder) if ended.code == 0 else {"ended": ended.output[-300:]}
            if found != expected:
                wrong.append((chain, sorted(key for key in expected if found.get(key) != expected[key])))
        print(
            f"{command}: killed {killed} times in {chain} chains, {len(wrong)} ended otherwise than undisturbed",
            *wrong,
            flush=True,
        )


def full_disks(count: int, seed: int) -> None:
    """Fit on disks that are too small, then with room."""
    dice = random.Random(f"full {seed}")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name).resolve()
        whole, _ = undisturbed("fit", place)
        needed = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
        wrong, tried = [], 0
        for number in range(count):
            folder = place / f"disk_{number}"
            folder.mkdir()
            size = dice.randint(needed // 20, int(needed * 0.9)) // 1024
            if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", folder], check=False).returncode:
                print("full disks: not tried, no right to mount")
                return
            try:
                ended = run(words_of("fit", folder), folder)
                tried += ended.code != 0
                faults = [] if ended.code in (0, 2) else [ended.output[-300:]]
                faults += leftovers(folder)
                subprocess.run(["mount", "-o", "remount,size=1g", folder], check=True)
                again = run(words_of("fit", folder), folder)
                faults += [] if again.code == 0 and run_of(first_run(folder))["losses"] else [again.output[-300:]]
            finally:
                subprocess.run(["umount", folder], check=True)
            wrong += [(size, faults)] if faults else []
        print(
            f"full disks: {tried} of {count} were too small; {len(wrong)} ended otherwise than by one line, left "
            "something half written, or did not go on with room",
            *wrong,
            flush=True,
        )


def main() -> None:
    """Print a line for each scene that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for scene in ("encode", "fit", "kfold", "refit", "full"):
        parser.add_argument(f"--{scene}", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", WANDB_MODE="offline")
    import diffusers
    import transformers

    import vidlit.commands.cli.lightning_cli  # noqa: F401 - all of it before the forks

    _ = diffusers.LTXVideoTransformer3DModel, transformers.T5EncoderModel

    for scene in ("encode", "fit", "kfold", "refit"):
        if getattr(options, scene):
            kills(scene, getattr(options, scene), options.seed)
    if options.full:
        full_disks(options.full, options.seed)


if __name__ == "__main__":
    main()
