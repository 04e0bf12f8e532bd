"""The user's own signals, callbacks and families: modules that the command line names with ``--plugin``.

A config file may come from anywhere, and loading a module runs it: so no YAML file can name one.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from argparse import SUPPRESS
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidlit.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningArgumentParser

    from vidlit.runs.directory import RunDirectory
    from vidlit.training.run_callback import RunCallback

OPTION, GROUP = "--plugin", "vidlit.plugins"
"""The option, and the group of entry points by which an installed package names its modules."""

REFUSED = "plugins are named on the command line only (--plugin my_rules.py), never in a config file"

_active: dict[str, str] = {}
"""Plugins of the command at hand: the names of their modules, by how each was named."""
_loaded: set[str] = set()
"""Modules of all plugins that this process has loaded."""


def take(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a command line without its ``--plugin`` options, and what these name.

    Raises:
        UserError: the option stands last, without a name.
    """
    others, named, left = [], [], iter(words)
    for word in left:
        if word == OPTION:
            name = next(left, None)
            if name is None:
                raise UserError(f"{OPTION} needs a name: a file (my_rules.py) or a module (package.module).")
            named.append(name)
        elif word.startswith(f"{OPTION}="):
            named.append(word.removeprefix(f"{OPTION}="))
        else:
            others.append(word)
    return others, named


@contextmanager
def active(named: Sequence[str]) -> Iterator[None]:
    """Load plugins and have them take part in what is run inside.

    Raises:
        UserError: one cannot be loaded.
    """
    _active.clear()
    try:
        for name in named:
            _active[name] = _load(name)
            _loaded.add(_active[name])
        yield
    finally:
        _active.clear()


def as_words() -> list[str]:
    """The options that name the plugins of the command at hand, for a command that goes on from it."""
    return [word for name in _active for word in (OPTION, name)]


def modules() -> list[str]:
    """Modules whose classes a config may name."""
    return list(_active.values())


def modules_of_before() -> list[str]:
    """Modules of earlier commands of this process, whose classes it may name no more."""
    return sorted(_loaded - {*_active.values()})


# -- loading


def _load(name: str) -> str:
    """Import a plugin; the name of its module."""
    from importlib.metadata import entry_points  # takes a while to import

    try:
        if name.endswith(".py"):
            return _load_file(Path(name))
        entry = next(iter(entry_points(group=GROUP, name=name)), None)
        return importlib.import_module(entry.module if entry is not None else name).__name__
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise UserError(
            f"{OPTION} {name}: {error}. Name a file (my_rules.py), an installed module, or an entry point of {GROUP}."
        ) from error
    except Exception as error:
        raise UserError(f"{OPTION} {name}: {type(error).__name__}: {error}{_line(error)}") from error


def _load_file(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"{OPTION} {path}: no such file.")
    name = path.stem
    if not name.isidentifier():
        raise UserError(f"{OPTION} {path}: the file's name must be one that can be imported, such as my_rules.py.")
    loaded = sys.modules.get(name)
    spec = loaded.__spec__ if loaded is not None else importlib.util.find_spec(name)
    if spec is not None and (spec.origin is None or Path(spec.origin).resolve() != path.resolve()):
        raise UserError(f"{OPTION} {path}: there is a module called {name} already ({spec.origin}): rename the file.")
    if loaded is None:
        spec = importlib.util.spec_from_file_location(name, path.resolve())
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return name


def _line(error: BaseException) -> str:
    """Where it happened, as far as the traceback says."""
    frames = inspect.getinnerframes(error.__traceback__) if error.__traceback__ is not None else []
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


# -- taking part


def callbacks() -> dict[str, type[RunCallback]]:
    """Signals and callbacks of the plugins, by the section of the config that has their options.

    Raises:
        UserError: a signal has the name of another.
    """
    from vidlit.signals.signal import known_signals

    found = in_modules(modules())
    for name, kind in known_signals(of_the_package=True).items():
        if name in found:
            raise UserError(f"{_full_name(found[name])}: there is a signal called {name} already ({_full_name(kind)}).")
    return found


def in_modules(names: Sequence[str]) -> dict[str, type[RunCallback]]:
    """Callbacks that are defined in modules, or below them, and have a section of the config, by that section."""
    from vidlit.training.run_callback import RunCallback

    all_kinds = [kind for kind in _subclasses(RunCallback) if kind.section and not inspect.isabstract(kind)]
    by_module = sorted(all_kinds, key=lambda kind: kind.__module__)  # not by what was imported first
    return {kind.section: kind for name in names for kind in by_module if _is_below(kind.__module__, name)}


def add_to(parser: LightningArgumentParser) -> None:
    """Give the plugins' callbacks their sections, and refuse what only the command line may name.

    Raises:
        UserError: a section is taken.
    """
    parser.add_argument(
        OPTION, type=_refuse, default=SUPPRESS, help="File or module with signals, callbacks and families of your own."
    )
    for section, kind in callbacks().items():
        try:
            parser.add_lightning_class_args(kind, section)
        except ValueError as error:
            raise UserError(f"{_full_name(kind)}: its section {section} is taken: {error}") from error


def _refuse(value: Any) -> Any:
    raise ValueError(REFUSED)


def _is_below(module: str, name: str) -> bool:
    return module == name or module.startswith(f"{name}.")


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__name__}"


def _subclasses(kind: type[Any]) -> list[type[Any]]:
    direct = kind.__subclasses__()
    return [*direct, *(each for child in direct for each in _subclasses(child))]


# -- runs that need them


def save(directory: RunDirectory) -> None:
    """Write down which plugins a run is begun with."""
    from vidlit.runs.directory import write_text

    if _active:
        write_text(directory.plugins, "".join(f"{name}\n" for name in _active))


def require(directory: RunDirectory) -> None:
    """Make sure that the plugins of a run are here.

    Raises:
        UserError: one is missing.
    """
    here = {_stem(name) for name in _active}
    missing = [name for name in directory.read_plugins() if _stem(name) not in here]
    if missing:
        options = " ".join(f"{OPTION} {name}" for name in missing)
        raise UserError(f"{directory.path} was begun with {options}: add that to the command.")


def require_for_configs(words: Sequence[str]) -> None:
    """Make sure that the plugins are here whose sections a run's saved config holds; a parser knows nothing of them.

    Raises:
        UserError: one is missing.
    """
    from vidlit.runs.directory import RunDirectory

    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "--config" or word.startswith("--config="):
            config = Path(word.partition("=")[2] or following)
            require(RunDirectory(config.parent))


def _stem(name: str) -> str:
    return Path(name).stem if name.endswith(".py") else name
