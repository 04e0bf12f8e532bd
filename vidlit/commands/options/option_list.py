"""Every option of every command, known without building a parser: building one imports torch and Lightning.

The list is ``options.json`` beside this file. It answers misspelt options and keys, ``--help`` and shell completion.
``python -m vidlit.commands.options.option_list`` writes it from the parsers; a test compares the two.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import Action

FILE = Path(__file__).with_name("options.json")

POLICY = "overfit_stopping.policy"
"""The option whose names are those of signals."""


@dataclass(frozen=True)
class Option:
    """What an option takes.

    Args:
        kinds: of value, where all are simple: ``int``, ``float``, ``bool``, ``null``; empty where others go as well.
        choices: words it takes.
        fields: names below it, by a dot, with what each takes.
        is_open: classes go there, which have names below them that stand in no list.
    """

    kinds: list[str] = field(default_factory=list)
    choices: list[str] = field(default_factory=list)
    fields: dict[str, Option] = field(default_factory=dict)
    is_open: bool = False

    def as_json(self) -> dict[str, Any]:
        """What differs from an option that takes any word."""
        fields = {name: below.as_json() for name, below in self.fields.items()}
        every = {"kinds": self.kinds, "choices": self.choices, "fields": fields, "is_open": self.is_open}
        return {name: value for name, value in every.items() if value}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Option:
        """The other way round."""
        fields = {name: cls.from_json(below) for name, below in values.get("fields", {}).items()}
        return cls(**{**values, "fields": fields})


@dataclass(frozen=True)
class OptionList:
    """The options of one command by name, without dashes.

    Args:
        options: each with what it takes.
        required: names without which nothing can be done.
        reads_yaml: whether all of them may stand in YAML files as well.
    """

    options: dict[str, Option]
    required: list[str]
    reads_yaml: bool


@cache
def option_lists() -> dict[str, OptionList]:
    """The options of each command, from the packaged list."""
    packaged = json.loads(FILE.read_text(encoding="utf-8"))
    shared = {name: Option.from_json(values) for name, values in packaged["shared"].items()}
    lists = {}
    for command, own in packaged["commands"].items():
        options = {name: Option.from_json(values) for name, values in own["options"].items()}
        lists[command] = OptionList({**(shared if own["shares"] else {}), **options}, own["required"], own["shares"])
    return lists


# -- making the list


def gather() -> dict[str, Any]:
    """The list as the parsers have it now."""
    from vidlit.commands import load, summaries
    from vidlit.commands.cli.configs import find_config
    from vidlit.commands.cli.parse_only import ParseOnly
    from vidlit.lightning_internals import parser_of

    lightning = {}
    for name in ParseOnly.subcommands():
        words = [name, "--config", str(find_config("quickstart")), *(["--prompts=any"] if name == "predict" else [])]
        lightning[name] = _read(parser_of(ParseOnly(words), name))
    for options, _ in lightning.values():
        options[POLICY] = _policy().as_json()
    fit, _ = lightning["fit"]
    shared = {name: values for name, values in fit.items() if all(name in each for each, _ in lightning.values())}
    lists: dict[str, dict[str, Any]] = {
        name: {
            "shares": True,
            "options": {option: values for option, values in options.items() if option not in shared},
            "required": required,
        }
        for name, (options, required) in lightning.items()
    }
    for name in summaries():
        if name in lists:
            continue
        module = load(name)
        options, required = _read(module.parser()) if hasattr(module, "parser") else ({}, [])
        lists[name] = {"shares": False, "options": options, "required": required}
    own = {name: values for name, values in fit.items() if name not in shared}
    for name in ("kfold", "plan"):
        lists[name] = {**lists["fit"], "options": {**own, **lists[name]["options"]}}
    return {"shared": shared, "commands": dict(sorted(lists.items()))}


def _policy() -> Option:
    """A mode for each signal that comes with vidlit: to the parser any name is one."""
    from vidlit.signals.signal import known_signals
    from vidlit.stopping.verdict import Mode

    return Option(fields={name: _of_type(Mode) for name in sorted(known_signals(of_the_package=True))})


def _read(parser: Any) -> tuple[dict[str, Any], list[str]]:
    """The options of a parser, and which of them must be given."""
    options = {}
    for action in parser._actions:
        if type(action).__name__ in ("ActionLink", "_HelpAction"):
            continue
        for word in action.option_strings:
            name = word.lstrip("-")
            if len(name) > 1 and not name.endswith(("+", ".help")):
                options[name] = _describe(action).as_json()
    required = [action.dest for action in parser._actions if action.required and action.option_strings]
    return options, sorted(required)


def _describe(action: Action) -> Option:
    if action.nargs == 0:
        return Option(kinds=["flag"])
    if type(action).__name__ == "_ActionConfigLoad":
        return Option()
    return _of_type(getattr(action, "_typehint", None) or action.type)


def _of_type(hint: Any) -> Option:
    """What a type takes, as far as can be told without Lightning later on."""
    import types
    from collections.abc import Callable
    from dataclasses import fields, is_dataclass
    from typing import Literal, Union, get_args, get_origin, get_type_hints

    simple = {int: "int", float: "float", bool: "bool", type(None): "null"}
    if hint in simple:
        return Option(kinds=[simple[hint]])
    if get_origin(hint) is Literal:
        return Option(choices=[str(value) for value in get_args(hint)])
    if get_origin(hint) in (Union, types.UnionType):
        parts = [_of_type(part) for part in get_args(hint)]
        is_simple = all(part.kinds or part.choices for part in parts)
        return Option(
            kinds=sorted({kind for part in parts for kind in part.kinds}) if is_simple else [],
            choices=[choice for part in parts for choice in part.choices],
            fields={name: below for part in parts for name, below in part.fields.items()},
            is_open=any(part.is_open for part in parts),
        )
    if isinstance(hint, type) and is_dataclass(hint):
        types_of = get_type_hints(hint)
        return Option(fields={each.name: _of_type(types_of[each.name]) for each in fields(hint) if each.init})
    if get_origin(hint) in (list, dict, Callable) or hint is Any:
        return Option(is_open=True)
    is_class = isinstance(hint, type) and not issubclass(hint, str | Path)
    return Option(is_open=is_class)


def as_text(gathered: dict[str, Any]) -> str:
    """The list as the file has it: a line for each option, so that changes are seen and merged line by line."""

    def lines(options: dict[str, Any], indent: str) -> str:
        return ",\n".join(f"{indent}{json.dumps(name)}: {json.dumps(values)}" for name, values in options.items())

    commands = ",\n".join(
        f'  {json.dumps(name)}: {{"shares": {json.dumps(own["shares"])}, "required": {json.dumps(own["required"])}, '
        f'"options": {{\n{lines(own["options"], "   ")}\n  }}}}'
        for name, own in gathered["commands"].items()
    )
    return f'{{\n "shared": {{\n{lines(gathered["shared"], "  ")}\n }},\n "commands": {{\n{commands}\n }}\n}}\n'


def main() -> None:
    """Write the list."""
    FILE.write_text(as_text(gather()), encoding="utf-8")
    print(f"{FILE} is written.")


if __name__ == "__main__":
    main()
