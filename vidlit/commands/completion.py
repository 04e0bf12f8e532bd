"""Completion for bash, zsh, fish: eval "$(vidlit completion bash)"."""

from __future__ import annotations

from vidlit.commands import summaries
from vidlit.commands.cli.configs import packaged_configs
from vidlit.commands.cli.plain_parser import PlainParser
from vidlit.commands.options.checking import all_names
from vidlit.commands.options.option_list import option_lists

BASH = """\
# vidlit for bash; a line of ~/.bashrc loads it: eval "$(vidlit completion bash)"
_vidlit() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" command="${{COMP_WORDS[1]}}"
    [[ $before == "=" ]] && before="${{COMP_WORDS[COMP_CWORD-2]}}"
    [[ $word == "=" ]] && before="${{COMP_WORDS[COMP_CWORD-1]}}" word=""
    COMPREPLY=()
    if [[ $COMP_CWORD -eq 1 ]]; then
        COMPREPLY=($(compgen -W "{commands}" -- "$word"))
        return
    fi
    case "$before" in
        --config) COMPREPLY=($(compgen -W "{configs}" -- "$word") $(compgen -f -- "$word")); return ;;
{values}
    esac
    if [[ $word == -* ]]; then
        case "$command" in
{options}
        esac
    else
        COMPREPLY=($(compgen -f -- "$word"))
    fi
}}
complete -o filenames -o nosort -F _vidlit vidlit 2>/dev/null || complete -o filenames -F _vidlit vidlit
"""
ZSH = """\
# vidlit for zsh; a line of ~/.zshrc, after compinit, loads it: eval "$(vidlit completion zsh)"
autoload -U +X bashcompinit && bashcompinit
"""


def run(words: list[str]) -> None:
    """Run the command.

    Args:
        words: of the command line, from the command's name on.
    """
    shell = parser().parse_args(words[1:]).shell
    print({"bash": bash, "zsh": lambda: ZSH + bash(), "fish": fish}[shell](), end="")


def parser() -> PlainParser:
    """The command's options."""
    made = PlainParser(prog="vidlit completion", description="Print a script that completes commands and options.")
    made.add_argument("shell", choices=["bash", "zsh", "fish"])
    return made


def bash() -> str:
    """The script for bash, with every option in it: a TAB starts no Python."""
    shared, options = _options()
    arms = [f'            {name}) COMPREPLY=($(compgen -W "{" ".join(own)}" -- "$word")) ;;' for name, own in options]
    values = [f'        --{name}) COMPREPLY=($(compgen -W "{words}" -- "$word")); return ;;' for name, words in shared]
    return BASH.format(
        commands=" ".join(summaries()),
        configs=" ".join(packaged_configs()),
        values="\n".join(values),
        options="\n".join(arms),
    )


def fish() -> str:
    """The script for fish."""
    values, options = _options()
    words_of = dict(values)
    lines = ["# vidlit for fish; save it as ~/.config/fish/completions/vidlit.fish"]
    lines += [
        f"complete -c vidlit -n __fish_use_subcommand -f -a {name} -d {_quoted(summary)}"
        for name, summary in summaries().items()
    ]
    for name, own in options:
        for option in own:
            takes = f" -x -a {_quoted(words_of[option[2:]])}" if option[2:] in words_of else ""
            lines.append(f"complete -c vidlit -n '__fish_seen_subcommand_from {name}' -l {option[2:]}{takes}")
    return "\n".join(lines) + "\n"


def _options() -> tuple[list[tuple[str, str]], list[tuple[str, list[str]]]]:
    """Words that options take, by option; and the options of each command, with dashes."""
    values: dict[str, str] = {}
    options = []
    for command, known in option_lists().items():
        options.append((command, [f"--{name}" for name in all_names(known)]))
        for name, option in known.options.items():
            takes = [*option.choices, *(["true", "false"] if option.kinds == ["bool"] else [])]
            if takes:
                values[name] = " ".join(dict.fromkeys(takes))
    return sorted(values.items()), options


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "\\'") + "'"
