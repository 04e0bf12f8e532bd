"""Decoding in a child process: a file that crashes, hangs or fills the decoder costs itself and nothing else.

The child is a plain ``python -m``, not a fork and not ``multiprocessing``: loader workers may not have children of
that kind, and CUDA does not survive a fork. Requests and answers are lines of JSON; the parent never unpickles what a
broken decoder wrote. Pixels go through a file in memory that both hold open: tens of megabytes would crawl through a
pipe, whose two sides wait for each other every 64 kB.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vidlit.video.frames import BLACK, Color, VideoError, VideoInfo, VideoReader, probe

TIME_LIMIT = 120.0
"""Seconds for one clip or one file."""
MEMORY_LIMIT = 6 * 2**30
"""Bytes of address space of the child. An 8K frame needs about 50 MB, and decoders keep up to twenty."""
_READY = b"ready\n"
_QUESTIONS_PER_COLLECTION = 8  # PyAV's containers and streams refer to each other: only a collection frees them


class IsolatedReader:
    """:func:`~vidlit.video.frames.read_clip` and the questions of planning, answered by a child process.

    Starts with its first question, and again after a child was lost. Can be sent to a loader worker, and copies that
    a fork makes start children of their own.

    Args:
        time_limit: seconds for one question; a child that needs longer is killed.
        memory_limit: bytes the child may have.
    """

    def __init__(self, time_limit: float = TIME_LIMIT, memory_limit: int = MEMORY_LIMIT) -> None:
        self.time_limit = time_limit
        self.memory_limit = memory_limit
        self._child: subprocess.Popen[bytes] | None = None
        self._pixels = -1  # descriptor of the shared file
        self._owner = 0

    def read_clip(
        self,
        path: Path,
        start: float,
        num_frames: int,
        fps: float,
        height: int,
        width: int,
        background: Color = BLACK,
    ) -> NDArray[np.uint8]:
        """As :func:`vidlit.video.frames.read_clip`.

        Raises:
            VideoError: as there, and for a file that crashed the decoder or took too long.
            RuntimeError: the child does not start.
        """
        clip = np.empty((num_frames, height, width, 3), np.uint8)
        arguments = {"start": start, "num_frames": num_frames, "fps": fps, "height": height, "width": width}
        self._ask("read_clip", path, clip, **arguments, background=background)
        return clip

    def inspect(self, path: Path, fingerprint: bool) -> tuple[VideoInfo, list[Any]]:
        """:func:`vidlit.video.frames.probe`, and the fields of :func:`vidlit.video.duplicates.fingerprint` if wanted.

        Raises:
            VideoError: the file cannot be used.
        """
        answer = self._ask("inspect", path, fingerprint=fingerprint)
        return VideoInfo(**answer["info"]), answer["fingerprint"]

    def close(self) -> None:
        """End the child, if there is one."""
        child, self._child = self._child, None
        if child is not None and self._owner == os.getpid():
            child.kill()
            child.communicate()
            os.close(self._pixels)

    def __enter__(self) -> IsolatedReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_child": None, "_pixels": -1}

    def _ask(self, task: str, path: Path, pixels: NDArray[np.uint8] | None = None, **arguments: Any) -> Any:
        child = self._running()
        request = {"task": task, "path": os.fspath(path), "time_limit": self.time_limit, **arguments}
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
            line = child.stdout.readline()
            answer = json.loads(line) if line else None
            if answer is not None and "error" not in answer and pixels is not None:
                _read(self._pixels, pixels)
        except (OSError, EOFError, ValueError):
            answer = None
        except BaseException:  # Ctrl-C between question and answer: the next question must not get this answer
            self.close()
            raise
        if answer is None:
            raise VideoError(self._bury(child))
        if "error" in answer:
            raise VideoError(answer["error"])
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._owner != os.getpid() or self._child.poll() is not None:
            self.close()
            environment = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                "OPENBLAS_NUM_THREADS": "1",  # its thread pools would count against the memory limit
            }
            self._pixels = _shared_file()
            self._child = subprocess.Popen(
                [sys.executable, "-m", "vidlit.video.isolation", str(self.memory_limit), str(self._pixels)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                pass_fds=(self._pixels,),
                start_new_session=True,  # Ctrl-C is for the parent, which then ends its child
            )
            self._owner = os.getpid()
            assert self._child.stdout is not None
            if self._child.stdout.readline() != _READY:  # no file's fault: blaming them would empty the data set
                self.close()
                raise RuntimeError(
                    f"the decoding process does not start; '{sys.executable} -m vidlit.video.isolation "
                    f"{self.memory_limit} 1' shows why"
                )
        return self._child

    def _bury(self, child: subprocess.Popen[bytes]) -> str:
        """Wait for a lost child and say how it ended."""
        self._child = None
        child.kill()
        child.communicate()
        os.close(self._pixels)
        if child.returncode == -signal.SIGALRM:
            return f"took longer than {self.time_limit:g} s to decode"
        how = signal.Signals(-child.returncode).name if child.returncode < 0 else f"exit code {child.returncode}"
        return f"crashed the decoder ({how})"


def _shared_file() -> int:
    """A descriptor of a file without a name, in memory where the system has that."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("clip")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _read(descriptor: int, pixels: NDArray[np.uint8]) -> None:
    view, done = pixels.data.cast("B"), 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], done)
        if not count:
            raise EOFError
        done += count


def _write(descriptor: int, pixels: NDArray[np.uint8]) -> None:
    view, done = pixels.data.cast("B"), 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], done)


def _answer(request: dict[str, Any], reader: VideoReader, output: BinaryIO, descriptor: int) -> None:
    """Do one task, in the child."""
    task, path = request.pop("task"), Path(request.pop("path"))
    try:
        if task == "read_clip":
            clip = reader.read_clip(path, **request)
            _write(descriptor, clip)
            output.write(b"{}\n")
            return
        info = probe(path)
        hashes: list[Any] = []
        if request["fingerprint"]:
            from vidlit.video.duplicates import fingerprint  # imports what reading clips never needs

            hashes = list(fingerprint(path, info))
        answer = {"info": asdict(info), "fingerprint": hashes}
    except VideoError as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {"error": "needs more memory than one clip may have"}
    except Exception as error:  # whatever a hostile file provokes is its own fault, not the run's
        answer = {"error": f"cannot be decoded: {type(error).__name__}: {error}"}
    output.write(json.dumps(answer).encode() + b"\n")


def _serve(memory_limit: int, descriptor: int) -> None:
    """The child: answer until the parent closes its end. Its own alarm ends it, even if the parent is gone."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The decoder may print: only answers go to the pipe.
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    output.write(_READY)
    output.flush()
    reader = VideoReader()
    for number, line in enumerate(sys.stdin.buffer, 1):
        request = json.loads(line)
        # The default action of the signal is to end the process, also in the middle of a call into C.
        signal.setitimer(signal.ITIMER_REAL, request.pop("time_limit"))
        _answer(request, reader, output, descriptor)
        signal.setitimer(signal.ITIMER_REAL, 0)
        output.flush()
        if number % _QUESTIONS_PER_COLLECTION == 0:
            gc.collect()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
