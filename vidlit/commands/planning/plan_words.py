"""What `vidlit plan` says to a person of clips, batches, checks and encoding."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from vidlit.forecast.run_plan import RunPlan

_LISTED = 8  # reasons shown of each kind; --json has them all
_SMALL_SET = {
    "kfold": "each recording for validation once, then the best number of steps for all",
    "refit": "once the best step is known, again on all clips",
}
_MOST_CHARACTERS = 400  # of one of them: a name may be as long as its system allows


def print_plan(plan: RunPlan, console: Console | None = None, commands: Mapping[str, str] | None = None) -> None:
    """Show a plan to a person.

    Args:
        plan: to show.
        console: to print to.
        commands: by :func:`small_set_commands`.
    """
    from rich.console import Console
    from rich.table import Table

    from vidlit.data.usage import count_words
    from vidlit.errors import printable
    from vidlit.runs import wording

    console = console or Console()
    say = partial(wording.say, console=console)
    say(f"{plan.source} ({plan.layout}): {plan.clips} clips of {plan.videos} recordings")
    say(count_words(plan.counts))
    if plan.masked:
        say(f"masks: of {plan.masked} of the {plan.clips} clips; the others count everywhere in the loss")
    if plan.references:
        say(
            f"references: {plan.references} {'images' if plan.references_are_images else 'videos'}, which every sample "
            "takes beside its own tokens"
        )
    table = Table("bucket")
    for name in ("clips", "train", "tokens each", "repeats a batch"):
        table.add_column(name, justify="right")
    table.add_column("could merge into")
    for row in plan.buckets:
        table.add_row(
            row.bucket, str(row.clips), str(row.train), str(row.tokens), str(row.repeats_per_batch), row.merge_into
        )
    console.print(table)
    for name, rows, line in (
        ("quarantined", plan.quarantined, "{video}: {reason}"),
        ("dropped", plan.dropped, "{video}: {reason}"),
        ("shortened", plan.shortened, "{video}: {used:.2f} of {total:.2f} s used"),
        ("near-duplicates, treated as one recording", plan.near_duplicates, "{first} = {second} (group {group})"),
        (
            "clips probably cross a cut; data.cutting.mode scenes would cut there",
            [{"clip": clip} for clip in plan.crossing],
            "{clip}",
        ),
        (
            f"of {plan.clips} clips have no sound, and no part in learning it",
            [{"clip": clip} for clip in plan.silent],
            "{clip}",
        ),
        ("in the folder but not in the table", [{"video": video} for video in plan.unlisted], "{video}"),
        *((what, [{"name": name} for name in names], "{name}") for what, names in plan.skipped.items()),
    ):
        if rows:
            say(f"{len(rows)} {name}:")
            for row_ in rows[:_LISTED]:
                say(f"  {printable(line.format(**row_))[:_MOST_CHARACTERS]}")
            if len(rows) > _LISTED:
                say(f"  ... {len(rows) - _LISTED} more (--json lists all)")
    for remark in plan.remarks:
        say(printable(remark)[:_MOST_CHARACTERS])
    sides = [f"{side} {n['clips']} clips of {n['videos']} recordings" for side, n in plan.split.items() if n["clips"]]
    say(f"split by recording (group): {', '.join(sides)}")
    if plan.validation_groups:
        names = [printable(name)[:_MOST_CHARACTERS] for name in plan.validation_groups[:_LISTED]]
        left = len(plan.validation_groups) - len(names)
        say(f"for validation: {', '.join(names)}" + (f", ... {left} more (--json lists all)" if left else ""))
    if commands:
        say(f"A small set: {plan.split['val']['videos']} recordings say little of others, and are missing in training.")
        for name, command in commands.items():
            say(f"  {_SMALL_SET[name]}:")
            say(f"    {printable(command)}")
    say(
        f"{plan.max_steps:,} steps of {plan.batch_size:g} samples ({plan.tokens_per_step:,.0f} tokens), one pass over "
        f"the clips every {plan.steps_per_pass:.1f} steps"
    )
    seen = plan.exposures
    say(
        f"exposures of each recording at the end: {seen['mean']:.1f} on average ({seen['min']} to {seen['max']}): "
        f"{plan.band}. Conservative up to {plan.conservative_max_steps:,} steps, moderate up to "
        f"{plan.moderate_max_steps:,}."
    )
    say(plan.advice)
    checks = plan.checks
    first, last = checks["first_interval"], checks["last_interval"]
    every = f"every {first} steps" + (f" at first, every {last} in the end" if last > first else "")
    say(
        f"checks: {checks['count']}, {every}, of {checks['held_out_clips']} validation clips and "
        f"{checks['train_eval_clips']} for training: they add about {100 * checks['share']:.0f} % to the cost of "
        "training, should it go on to the end"
    )
    todo = plan.encode
    say(
        f"to encode: {todo['clips']} clips, {todo['gigabytes']:.3f} GB, and {todo['captions']} captions, whose size is "
        f"not counted: up to 16 MB each, by family. Decoding takes about {todo['decode_seconds']:.0f} s here, encoding "
        "with the VAE not counted"
    )
