"""Decoding in a child process: a file that crashes, hangs or fills the decoder costs itself and nothing else.

The child is a plain ``python -m``, not a fork and not ``multiprocessing``: loader workers may not have children of
that kind, and CUDA does not survive a fork. Requests and answers are lines of JSON; the parent never unpickles what a
broken decoder wrote. Pixels and sound go through a file that both hold open, in memory where the system has that: tens
of megabytes would crawl through a pipe, whose two sides wait for each other every 64 kB.

Every system can do this but for the limit on memory, which Windows and macOS do not have.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidlit.video.frames import (
    ClipRequest,
    TransientVideoError,
    VideoError,
    VideoInfo,
    VideoReader,
    frame_times,
    probe,
)
from vidlit.video.pixels import because
from vidlit.video.sound import num_samples, read_sound

TIME_LIMIT = 120.0
"""Seconds for one clip or one file; what reads all of a file may take longer if it is large or long."""
MEMORY_LIMIT = 6 * 2**30
"""Bytes of address space of the child. An 8K frame needs about 50 MB, and decoders keep up to twenty."""
_SLOWEST_DISK = 10e6  # bytes a second that a busy network disk gives at least
_PAUSE = 0.5  # seconds before the second try, where the system failed and not the file
_KILLED = ("SIGKILL", "SIGTERM", "SIGBUS")  # by the system, which needs memory, is going down, or lost the disk
_READY = b"ready\n"
_QUESTIONS_PER_COLLECTION = 8  # PyAV's containers and streams refer to each other: only a collection frees them


class IsolatedReader:
    """:func:`~vidlit.video.frames.read_clip` and the questions of planning, answered by a child process.

    Starts with its first question, and again after a child was lost. Can be sent to a loader worker, and copies that
    a fork makes start children of their own.

    Args:
        time_limit: seconds for one question; a child that needs longer is killed.
        memory_limit: bytes the child may have, where the system can limit them.
    """

    def __init__(self, time_limit: float = TIME_LIMIT, memory_limit: int = MEMORY_LIMIT) -> None:
        self.time_limit = time_limit
        self.memory_limit = memory_limit
        self._child: subprocess.Popen[bytes] | None = None
        self._decoded: SharedFile | None = None
        self._owner = 0

    def read_clip(self, request: ClipRequest) -> NDArray[np.uint8]:
        """As :func:`vidlit.video.frames.read_clip`.

        Raises:
            VideoError: as there, and for a file that crashed the decoder or took too long.
            RuntimeError: the child does not start.
        """
        clip = np.empty((request.num_frames, request.height, request.width, 3), np.uint8)
        fields = asdict(request)
        self._ask("read_clip", fields.pop("path"), clip, **fields)
        return clip

    def read_sound(self, request: ClipRequest, rate: int) -> NDArray[np.float32]:
        """As :func:`vidlit.video.sound.read_sound`.

        Raises:
            VideoError: as there, and for a file that crashed the decoder or took too long.
            RuntimeError: the child does not start.
        """
        sound = np.empty((2, num_samples(request.num_frames, request.fps, rate)), np.float32)
        fields = asdict(request)
        self._ask("read_sound", fields.pop("path"), sound, rate=rate, clip=fields)
        return sound

    def inspect(self, path: Path, fingerprint: bool) -> tuple[VideoInfo, list[Any]]:
        """:func:`vidlit.video.frames.probe`, and the fields of ``repeats.duplicates.fingerprint`` if wanted.

        Raises:
            VideoError: the file cannot be used.
        """
        answer = self._ask("inspect", path, patience=_seconds_to_read(path), fingerprint=fingerprint)
        return VideoInfo(**answer["info"]), answer["fingerprint"]

    def frame_times(self, path: Path, numbers: Sequence[int]) -> list[float]:
        """Seconds at which some frames appear: of :func:`vidlit.video.frames.frame_times`.

        Args:
            path: a video.
            numbers: of frames in the order they are displayed, from 0; those beyond the last give the video's end.

        Raises:
            VideoError: the file cannot be used.
        """
        times: list[float] = self._ask("frame_times", path, patience=_seconds_to_read(path), numbers=list(numbers))
        return times

    def find_cuts(self, path: Path, info: VideoInfo) -> list[float]:
        """:func:`vidlit.video.scenes.find_cuts`.

        Raises:
            VideoError: the file cannot be used.
        """
        # A decoder that is slower than a player is stuck.
        patience = _seconds_to_read(path) + info.duration
        cuts: list[float] = self._ask("find_cuts", path, patience=patience, width=info.width, height=info.height)
        return cuts

    def content(self, path: Path) -> str:
        """The sha256 of a file.

        Raises:
            VideoError: it cannot be fetched.
            OSError: it cannot be read.
        """
        with self.local(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def local(self, path: Path) -> Path:
        """Where a video is on this machine: readers of other places fetch it."""
        return path

    def address(self, path: Path) -> str:
        """What a video is called by everyone who may read it."""
        return str(path)

    def close(self) -> None:
        """End the child, if there is one."""
        self._stop()

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is not None and self._owner == os.getpid():
            self._end(child)

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        child.kill()
        child.communicate()
        if self._decoded is not None:
            self._decoded.close()

    def __enter__(self) -> IsolatedReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_child": None, "_decoded": None}

    def _ask(
        self, task: str, path: Path, decoded: NDArray[Any] | None = None, patience: float = 0.0, **arguments: Any
    ) -> Any:
        """The child's answer; ``patience`` are seconds beyond the time limit."""
        path = self.local(path)
        try:
            child = self._running()
        except OSError as error:  # too many processes or open files, too little memory
            raise because(f"cannot be opened: no decoding process ({error.strerror})", error) from error
        time_limit = self.time_limit + patience
        request = {"task": task, "path": os.fspath(path), "time_limit": time_limit, **arguments}
        assert child.stdin is not None
        assert child.stdout is not None
        assert self._decoded is not None
        began = time.monotonic()
        try:
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
            line = child.stdout.readline()
            answer = json.loads(line) if line else None
            if answer is not None and "error" not in answer and decoded is not None:
                self._decoded.read(decoded)
        except (OSError, EOFError, ValueError):
            answer = None
        except BaseException:  # Ctrl-C between question and answer: the next question must not get this answer
            self.close()
            raise
        if answer is None:
            raise self._bury(child, time.monotonic() - began >= time_limit, time_limit)
        if "error" in answer:
            raise (TransientVideoError if answer["transient"] else VideoError)(answer["error"])
        return answer["result"]

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._owner != os.getpid() or self._child.poll() is not None:
            self._stop()
            environment = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                "OPENBLAS_NUM_THREADS": "1",  # its thread pools would count against the memory limit
            }
            self._decoded = SharedFile.create()
            self._child = subprocess.Popen(
                [sys.executable, "-m", "vidlit.video.isolation", str(self.memory_limit), self._decoded.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                pass_fds=self._decoded.inherited,
                # Ctrl-C is for the parent, which then ends its child. The second is the same on Windows.
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
            self._owner = os.getpid()
            assert self._child.stdout is not None
            if self._child.stdout.readline() != _READY:  # no file's fault: blaming them would empty the data set
                self._stop()
                raise RuntimeError(
                    f"the decoding process does not start; '{sys.executable} -m vidlit.video.isolation "
                    f"{self.memory_limit} 1' shows why"
                )
            self._decoded.forget_name()
        return self._child

    def _bury(self, child: subprocess.Popen[bytes], timed_out: bool, time_limit: float) -> VideoError:
        """Wait for a lost child and say how it ended."""
        self._child = None
        self._end(child)
        if timed_out:
            return TransientVideoError(f"took longer than {time_limit:g} s to decode")
        if child.returncode >= 0:
            return VideoError(f"crashed the decoder (exit code {child.returncode})")
        name = signal.Signals(-child.returncode).name
        if name in _KILLED:
            return TransientVideoError(f"was not read: the decoding process was killed ({name})")
        return VideoError(f"crashed the decoder ({name})")


def _seconds_to_read(path: Path) -> float:
    """Of the whole file, at worst."""
    try:
        return path.stat().st_size / _SLOWEST_DISK
    except OSError:  # which the child will find, too
        return 0.0


class SharedFile:
    """A file that parent and child hold open, and take turns with: in memory where the system has that.

    Args:
        file: a descriptor or a path.
        inherited: descriptors that the child must be given.
    """

    def __init__(self, file: int | str, inherited: tuple[int, ...] = ()) -> None:
        self.name = str(file)
        """What the child opens it by."""
        self.inherited = inherited
        self._file = open(file, "r+b", buffering=0)

    @classmethod
    def create(cls) -> SharedFile:
        """A new one, without a name, or else among the temporary files."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("clip")
            return cls(descriptor, (descriptor,))
        descriptor, path = tempfile.mkstemp(".clip")
        os.close(descriptor)
        return cls(path)

    def read(self, decoded: NDArray[Any]) -> None:
        """Fill an array.

        Raises:
            EOFError: the file is shorter.
        """
        view, done = decoded.data.cast("B"), self._file.seek(0)
        while done < len(view):
            count = self._file.readinto(view[done:])
            if not count:
                raise EOFError
            done += count

    def write(self, decoded: NDArray[Any]) -> None:
        """Write a contiguous array."""
        view, done = decoded.data.cast("B"), self._file.seek(0)
        while done < len(view):
            done += self._file.write(view[done:])

    def forget_name(self) -> None:
        """Let the file vanish with the processes that hold it open; on Windows only :meth:`close` can do that."""
        if not self.inherited:
            with contextlib.suppress(PermissionError):
                Path(self.name).unlink(missing_ok=True)

    def close(self) -> None:
        """The child is gone."""
        self._file.close()
        self.forget_name()


def _do(task: str, path: Path, arguments: dict[str, Any], reader: VideoReader, shared: SharedFile) -> Any:
    """One task, in the child; imports what reading clips never needs."""
    if task == "read_clip":
        shared.write(reader.read_clip(ClipRequest(path, **arguments)))
        return None
    if task == "read_sound":
        shared.write(read_sound(ClipRequest(path, **arguments["clip"]), arguments["rate"]))
        return None
    if task == "frame_times":
        times = frame_times(path)
        return [float(times[min(number, len(times) - 1)]) for number in arguments["numbers"]]
    if task == "find_cuts":
        from vidlit.video.scenes import find_cuts

        return find_cuts(path, **arguments)
    info = probe(path)
    hashes: list[Any] = []
    if arguments["fingerprint"]:
        from vidlit.video.repeats.duplicates import fingerprint

        hashes = list(fingerprint(path, info))
    return {"info": asdict(info), "fingerprint": hashes}


def _answer(request: dict[str, Any], reader: VideoReader, shared: SharedFile) -> dict[str, Any]:
    """Do one task, in the child: a second time where the system failed, which a pause may mend."""
    task, path = request.pop("task"), Path(request.pop("path"))
    for last_try in (False, True):
        try:
            return {"result": _do(task, path, request, reader, shared)}
        except VideoError as error:
            failure = error
        except MemoryError as error:
            failure = because("needs more memory than one clip may have", error)
        except Exception as error:  # whatever a hostile file provokes is its own fault, not the run's
            failure = because(f"cannot be decoded: {type(error).__name__}: {error}", error)
        if last_try or not failure.transient:
            break
        reader.close()
        gc.collect()
        time.sleep(_PAUSE)
    return {"error": str(failure), "transient": failure.transient}


def _limit_memory(size: int) -> None:
    """Bound this process's address space to so many bytes, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    with contextlib.suppress(ValueError, OSError):  # macOS refuses
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _serve(memory_limit: int, shared: SharedFile) -> None:
    """The child: answer until the parent closes its end. Its own watchdog ends it, even if the parent is gone."""
    _limit_memory(memory_limit)
    # The decoder may print: only answers go to the pipe.
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    output.write(_READY)
    output.flush()
    reader = VideoReader()
    for number, line in enumerate(sys.stdin.buffer, 1):
        request = json.loads(line)
        # A thread that needs no interpreter: it ends the process also in the middle of a call into C.
        faulthandler.dump_traceback_later(request.pop("time_limit"), exit=True)
        answer = _answer(request, reader, shared)
        faulthandler.cancel_dump_traceback_later()
        output.write(json.dumps(answer).encode() + b"\n")
        output.flush()
        if number % _QUESTIONS_PER_COLLECTION == 0:
            gc.collect()


if __name__ == "__main__":
    name = sys.argv[2]
    _serve(int(sys.argv[1]), SharedFile(int(name) if name.isdigit() else name))
