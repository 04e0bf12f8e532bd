"""Mistakes in words and config files that can be told before anything slow is imported.

Names of options and keys, files that are not there, YAML that is none, and words where numbers belong. What only the
parser can tell (classes, what contradicts each other) it tells later.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from vidlit import plugins
from vidlit.bounded_yaml import TooLarge, compose, explain, load_yaml, read_text
from vidlit.commands.cli.configs import find_config
from vidlit.commands.options.old_keys import is_removed, rename_key
from vidlit.commands.options.option_list import POLICY, Option, OptionList, option_lists
from vidlit.errors import UserError

_OF_CLASSES = ("class_path", "init_args", "dict_kwargs")
_EVERYWHERE = ("help", "h", "c")
_BUCKET = re.compile(r"\d+x\d+x\d+")
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "null": "null"}


@dataclass(frozen=True)
class Given:
    """A word after the command: an option with its value, if it has one.

    Args:
        name: without dashes; empty for a word that belongs to no option.
        value: as written; ``None`` where there is none.
        position: of the value among the words; -1 where it stands in one word with the name, or is missing.
    """

    name: str
    value: str | None
    position: int


def check(words: list[str]) -> list[str]:
    """The words of a command, with its config files found.

    Args:
        words: from the command's name on.

    Raises:
        UserError: an option or a key is not known (with the nearest that is), takes no such word, a config file is not
            there or no YAML (with its line), or nothing says what to work on.
    """
    known = with_plugins(option_lists()[words[0]])
    checked, keys = list(words), set[str]()
    for given in read_words(words, known):
        if not given.name:
            if known.reads_yaml:
                raise UserError(_stray(given.value or "", words[0]))
        elif given.name in ("config", "c") and known.reads_yaml:
            if given.value is None:
                raise UserError("--config needs the name of a YAML file.")
            if given.value.lstrip().startswith("{"):  # YAML itself
                keys |= _check_config(given.value, "--config", known)
                continue
            found = find_config(given.value)
            checked[given.position] = str(found) if words[given.position] == given.value else f"--config={found}"
            keys |= _check_config(read_text(found), str(found), known)
        else:
            _check_name(given.name, known, f"--{given.name}")
            if given.value is not None:
                _check_value(given.value, find_option(given.name, known), f"--{given.name} {given.value}")
            keys.add(given.name)
            if given.name == "data.buckets" and _BUCKET.fullmatch(given.value or ""):  # a list of one
                checked[given.position] = words[given.position].replace(str(given.value), f"[{given.value}]")
    missing = [name for name in known.required if not any(_covers(key, name) for key in keys)]
    if missing and not {"help", "h", "print_config"} & keys:
        raise UserError(_nothing_to_do(words[0], missing))
    return checked


def with_plugins(known: OptionList) -> OptionList:
    """The list with the sections of plugins, whose options are for the parser to tell, and modes for their signals.

    Args:
        known: options of the command.
    """
    if not (known.reads_yaml and plugins.modules()):
        return known
    sections = {name: Option(is_open=True) for name in plugins.callbacks()}
    policy = Option(fields={**known.options[POLICY].fields, **sections})
    return OptionList({**known.options, **sections, POLICY: policy}, known.required, known.reads_yaml)


def read_words(words: list[str], known: OptionList) -> Iterator[Given]:
    """Options and their values, in order.

    Args:
        words: from the command's name on.
        known: its options: those that are flags take no value.
    """
    position = 1
    while position < len(words):
        word = words[position]
        if not word.startswith("-") or word.lstrip("-")[:1].isdigit():
            yield Given("", word, position)
        else:
            name, equals, value = word.lstrip("-").partition("=")
            option = known.options.get(name)
            follows = position + 1 < len(words) and not words[position + 1].startswith("--")
            if equals:
                yield Given(name, value, position)
            elif follows and not (option and "flag" in option.kinds) and name != "h" and not name.endswith("help"):
                position += 1
                yield Given(name, words[position], position)
            else:
                yield Given(name, None, -1)
        position += 1


def values_of(words: list[str], *names: str) -> dict[str, str]:
    """What words and config files say of some options, as text; nothing of what they do not name.

    Args:
        words: that :func:`check` has passed.
        names: of options, with dots.
    """
    values: dict[str, str] = {}
    for given in read_words(words, option_lists()[words[0]]):
        if given.name in ("config", "c") and given.value is not None:
            config = load_yaml(given.value if given.value.lstrip().startswith("{") else read_text(Path(given.value)))
            for name in names:
                value = config
                for part in name.split("."):
                    value = value.get(part) if isinstance(value, dict) else None
                if value is not None:
                    values[name] = str(value)
        elif given.name in names and given.value is not None:
            values[given.name] = given.value
    return values


def find_option(name: str, known: OptionList) -> Option | None:
    """What an option takes; ``None`` where the list does not say.

    Args:
        name: without dashes, with dots.
        known: options of the command.
    """
    name = name.removesuffix("+")
    if name in known.options:
        return known.options[name]
    above, below = _known_above(name, known)
    option = known.options.get(above)
    for part in below:
        option = option.fields.get(part) if option else None
    return option


def is_known(name: str, known: OptionList) -> bool:
    """Whether an option or a key exists, as far as the list can tell.

    Args:
        name: without dashes, with dots.
        known: options of the command.
    """
    name = name.removesuffix("+").removesuffix(".help")
    if name in known.options or name in _EVERYWHERE or any(option.startswith(f"{name}.") for option in known.options):
        return True
    above, below = _known_above(name, known)
    option = known.options.get(above)
    for part in below:
        if option is None:
            return False
        if option.is_open or part in _OF_CLASSES:
            return True
        option = option.fields.get(part)
    return option is not None


def nearest(name: str, known: OptionList) -> str:
    """The option that was most probably meant; empty where none is near.

    Args:
        name: that does not exist.
        known: options of the command.
    """
    names = all_names(known)
    last = name.rpartition(".")[2]
    same = [option for option in names if option.rpartition(".")[2] == last]
    if last == "lr":
        return "model.optimizer.init_args.lr"
    near = difflib.get_close_matches(name, same or names, n=1, cutoff=0.0 if same else 0.6)
    return near[0] if near else ""


def all_names(known: OptionList) -> list[str]:
    """Every name, those below dataclasses as well."""

    def below(name: str, option: Option) -> Iterator[str]:
        yield name
        for field, inner in option.fields.items():
            yield from below(f"{name}.{field}", inner)

    return [each for name, option in known.options.items() for each in below(name, option)]


def _known_above(name: str, known: OptionList) -> tuple[str, list[str]]:
    """The longest beginning that is an option, and the names below it."""
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        if ".".join(parts[:count]) in known.options:
            return ".".join(parts[:count]), parts[count:]
    return "", parts


def _check_name(name: str, known: OptionList, shown: str, dashes: str = "--") -> None:
    if not is_known(name, known):
        near = nearest(name, known)
        meant = f" Did you mean {dashes}{near}?" if near else ""
        if not is_known(name.partition(".")[0], known):
            meant += f" If a plugin has it, name that: {plugins.OPTION} FILE."
        raise UserError(f"{shown}: there is no such option.{meant}")


def _check_value(text: str, option: Option | None, shown: str) -> None:
    try:
        node = compose(text)
    except TooLarge as error:
        raise UserError(explain(shown.partition(" ")[0], error)) from error
    except yaml.YAMLError:
        return
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(node, option, shown)


def _check_scalar(node: yaml.ScalarNode, option: Option | None, shown: str) -> None:
    """Refuse a word where only numbers, true, false or certain words go."""
    if option is None or option.kinds == ["flag"] or not (option.kinds or option.choices) or option.fields:
        return
    if option.is_open or not node.tag.endswith(":str") or node.value in option.choices or _is_number(node.value):
        return
    if not option.kinds and not option.choices:
        return
    takes = [*option.choices, *(_KINDS[kind] for kind in option.kinds)]
    near = difflib.get_close_matches(node.value, option.choices, n=1)
    meant = f" Did you mean {near[0]}?" if near else ""
    raise UserError(f"{shown}: expected {', '.join(takes)}.{meant}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check_config(text: str, where: str, known: OptionList) -> set[str]:
    """The keys of a config, with dots.

    Args:
        text: YAML.
        where: it stands, for messages.
        known: options of the command.
    """
    try:
        root = compose(text)
    except yaml.YAMLError as error:
        raise UserError(explain(where, error)) from error
    if root is None:
        return set()
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{where} is not a config: it should hold `section:` lines with `option: value` below them.")
    keys = set[str]()
    _check_mapping(root, "", where, known, keys)
    return keys


def _check_mapping(mapping: yaml.MappingNode, above: str, file: str, known: OptionList, keys: set[str]) -> None:
    for key, value in mapping.value:
        if key.tag.endswith(":merge"):
            continue
        where = f"{file}, line {key.start_mark.line + 1}: {above}{key.value}"
        name = rename_key(f"{above}{key.value}")
        if not above and isinstance(value, yaml.ScalarNode) and _removed(name, value.value, where):
            continue
        if name == plugins.OPTION.removeprefix("--"):
            raise UserError(f"{where}: {plugins.REFUSED}.")
        _check_name(name, known, where, dashes="")
        option = find_option(name, known)
        keys.add(name.removesuffix("+"))
        if isinstance(value, yaml.ScalarNode):
            _check_scalar(value, option, f"{where} {value.value}")
        elif isinstance(value, yaml.MappingNode) and not (option and option.is_open):
            _check_mapping(value, f"{name}.", file, known, keys)


def _removed(name: str, value: str, where: str) -> bool:
    try:
        return is_removed(name, value)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _covers(key: str, name: str) -> bool:
    """Whether an option that was given may say what another one needs."""
    return key == name or name.startswith(f"{key}.") or key.startswith(f"{name}.")


def _stray(word: str, command: str) -> str:
    return (
        f"{command} does not know what {word!r} is: every word belongs to an option. A config is named by --config, "
        f"e.g. `vidlit {command} --config {word if Path(word).suffix in ('.yaml', '.yml') else 'quickstart'}`."
    )


def _nothing_to_do(command: str, missing: list[str]) -> str:
    options = ", ".join(f"--{name}" for name in missing)
    return (
        f"{command} needs a config: `vidlit {command} --config quickstart` to try it, or --config FILE with a file of "
        f"your own (what is missing: {options})."
    )
