"""The exceptions a user is meant to read, and what is said of those of other packages."""

from __future__ import annotations

import errno
import re
import signal
from collections.abc import Iterator
from pathlib import Path

MAX_LENGTH = 2000
"""Characters of a message: what one screen holds."""
_HEAD = 1400  # of these: what is wrong stands first, what to do about it last

_EXTRAS = {
    "torchao": "vidlit[quantize]",
    "prodigyopt": "vidlit[optimizers]",
    "schedulefree": "vidlit[optimizers]",
    "wandb_workspaces": "vidlit[dashboard]",
    "tensorboardX": "tensorboard",
    "comet_ml": "comet-ml",
    "google.protobuf": "protobuf",
    "sklearn": "scikit-learn",
    "scenedetect": "vidlit[scenes]",
}
"""What pip calls a module that has another name there."""
_NO_MODULE = re.compile(r"(?:No module named|Module not found:|Requirement) '([\w.\-]+)(?:'|[^']*' not met)")
_MISSING = re.compile(r"(?:No module named|Requirement|Module not found:|Neither|pip install(?: -U)?) [`']?([\w.\-]+)")
"""How Python, Lightning and others name it."""
_FULL = ("No space left on device", "Disk quota exceeded", "StorageFull")
_NO_MEMORY = ("can't allocate memory", "MPS backend out of memory")
_BROKEN = re.compile(
    r"gloo/transport|(?:closed|reset) by (?:remote )?peer|ncclRemoteError|remote process exit|to recv, got 0 bytes"
)
"""How gloo, NCCL and the store that ranks meet at say that the other side of a connection is gone."""
_WAYS_OUT = {
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EROFS: "the disk is read-only",
    errno.ENOENT: "no such file",
    errno.EMFILE: "too many files are open: raise the limit (`ulimit -n 4096`)",
    errno.ENFILE: "too many files are open on this machine",
}


class UserError(ValueError):
    """Something the user can put right: says what is wrong, where (file, row, option), and what to do.

    The command line prints its text as one line and exits non-zero, without a traceback unless ``--debug``.
    """


class Interrupted(Exception):  # noqa: N818 - says what happened, as KeyboardInterrupt does
    """The run was told to stop, and saved where it was.

    Args:
        signal_number: that told it.
        checkpoint: to go on from.
        by: what told it, in words; ``None`` for the signal.
    """

    def __init__(self, signal_number: int, checkpoint: Path, by: str | None = None) -> None:
        super().__init__(f"interrupted by {by or signal.Signals(signal_number).name}")
        self.signal_number = signal_number
        self.checkpoint = checkpoint
        self.advice = f"Go on with --ckpt_path {checkpoint}"


def explain_error(error: BaseException) -> str | None:
    """What is wrong and what to do, where a user can mend it; ``None`` for an error of vidlit's own.

    Other packages are known by name: none of them is imported to tell of it.

    Args:
        error: that ended a command.
    """
    text = own_words(error)
    if isinstance(error, UserError):
        return on_one_screen(text)
    line = " ".join(text.split())
    names = {kind.__name__ for kind in type(error).__mro__}
    told: str | None = None
    if (full := disk_full(error)) is not None:
        told = f"{full}. Free some space, or set --run.dir and --data.store elsewhere, then go on (--ckpt_path last)."
    elif (module := _missing_module(error, line)) is not None:
        told = f"this needs a package that is not installed: pip install '{_EXTRAS.get(module, module)}'."
    elif denied := re.search(r"Importing '([^']+)' is not allowed", line):
        key = re.search(r'Parser key "([^"]+)"', line)
        told = (
            f"{key[1] if key else 'the config'}: {denied[1]} is none of the classes that a config may name. Code of "
            "your own takes part by --plugin FILE on the command line."
        )
    elif "ArgumentError" in names:
        told = _of_a_link(error) or line
    elif isinstance(error, OSError) and (error.filename is not None or error.errno in _WAYS_OUT):
        reason = _WAYS_OUT.get(error.errno or 0, error.strerror or line)
        told = f"{error.filename}: {reason}." if error.filename is not None else f"{reason}."
    elif is_out_of_memory(error):
        told = "out of memory: smaller batches, fewer workers or a smaller base need less."
    elif "UnpicklingError" in names:
        told = "a file of weights is damaged, or holds more than numbers: nothing in it was run."
    elif "SafetensorError" in names:
        told = f"a safetensors file cannot be read or written: {line}."
    elif "MisconfigurationException" in names or _is_of(error, "lightning"):
        told = f"Lightning refuses this: {line}"
    elif _is_of(error, "jsonargparse"):
        told = f"what the config names cannot be made: {line}"
    return on_one_screen(told) if told is not None else None


def _of_a_link(error: BaseException) -> str | None:
    """What was wrong where jsonargparse computed one option from others; it tells of the function and its values."""
    if "compute_fn of link" not in str(error):
        return None
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__ or cause.__context__
    return None if cause is None else own_words(cause)


def explain_bug(error: BaseException) -> str:
    """What is said of an error that nobody foresaw."""
    frames = list(_files(error))
    where = f" ({frames[-1][0]}, line {frames[-1][1]})" if frames else ""
    line = " ".join(str(error).split())[:500]
    return on_one_screen(
        f"this is a bug in vidlit: {type(error).__name__}: {line}{where}. Run again with --debug for the traceback, "
        "and please report it."
    )


def disk_full(error: BaseException) -> str | None:
    """What is full, where that is what an error, or one that it came from, says; ``None`` otherwise."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return (
                f"no space is left on the disk of {seen.filename}" if seen.filename else "no space is left on the disk"
            )
        if any(each in str(seen) for each in _FULL):
            return "no space is left on the disk"
        seen = seen.__cause__ or seen.__context__
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Did an allocation fail? What a CPU's or an Apple GPU's raises is no class of its own in torch."""
    if isinstance(error, MemoryError) or "OutOfMemoryError" in {kind.__name__ for kind in type(error).__mro__}:
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def is_lost_rank(error: BaseException) -> bool:
    """Did the connection to another rank break, which died or ended with an error of its own?"""
    of_the_network = {"DistNetworkError", "DistStoreError"} & {kind.__name__ for kind in type(error).__mro__}
    broken = isinstance(error, RuntimeError) and _BROKEN.search(str(error))
    return bool(of_the_network or broken)


def printable(text: str) -> str:
    r"""A name as a terminal can show it: bytes that are no UTF-8 as ``\xe9``, controls and half characters escaped."""
    return "".join(each if each.isprintable() else _escaped(ord(each)) for each in text)


def _escaped(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # how Python reads a byte of a file name that is no UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def on_one_screen(text: str) -> str:
    """A message as a terminal can show it, line by line, and no more of it than a screen holds."""
    shown = "\n".join(map(printable, text.split("\n")))
    if len(shown) <= MAX_LENGTH:
        return shown
    tail = MAX_LENGTH - _HEAD - 5
    return f"{shown[:_HEAD]} ... {shown[-tail:]}"


def own_words(error: BaseException) -> str:
    """An error's text; of one in a worker process without the traceback that torch puts around it."""
    text = str(error)
    if text.startswith("Caught ") and "Original Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return text


def _missing_module(error: BaseException, line: str) -> str | None:
    """The package that is not installed, if that is what an error says."""
    found = _MISSING.search(line) if isinstance(error, ImportError) else _NO_MODULE.search(line)
    module = found[1] if found else getattr(error, "name", None) if isinstance(error, ImportError) else None
    if module is None or module.split(".")[0] == "vidlit":
        return None
    return module if module in _EXTRAS else module.split(".")[0]


def _is_of(error: BaseException, package: str) -> bool:
    """Whether a package itself raised this, as it does when options do not fit together."""
    files = [path for path, _ in _files(error)]
    return isinstance(error, ValueError | TypeError | RuntimeError) and bool(files) and f"/{package}/" in files[-1]


def _files(error: BaseException) -> Iterator[tuple[str, int]]:
    """Where an error passed, from the outermost frame to the one that raised it."""
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame.f_code.co_filename.replace("\\", "/"), trace.tb_lineno
        trace = trace.tb_next
