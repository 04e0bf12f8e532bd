"""Dry run of a fit: clips used and left out, batches, cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidlit.commands.cli.run_lightning import run_lightning

if TYPE_CHECKING:
    from rich.console import Console

    from vidlit.training.forecast import RunPlan

_LISTED = 8  # reasons shown of each kind; --json has them all


def run(words: list[str]) -> None:
    """Run the command.

    Args:
        words: of the command line, from the command's name on.
    """
    run_lightning(words)


def print_plan(plan: RunPlan, console: Console | None = None) -> None:
    """Show a plan to a person."""
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    console.print(f"{plan.source} ({plan.layout}): {plan.clips} clips of {plan.videos} recordings", highlight=False)
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
        ("in the folder but not in the table", [{"video": video} for video in plan.unlisted], "{video}"),
    ):
        if rows:
            console.print(f"{len(rows)} {name}:", highlight=False)
            for row_ in rows[:_LISTED]:
                console.print("  " + line.format(**row_), highlight=False, soft_wrap=True, markup=False)
            if len(rows) > _LISTED:
                console.print(f"  ... {len(rows) - _LISTED} more (--json lists all)", highlight=False)
    sides = [f"{side} {n['clips']} clips of {n['videos']} recordings" for side, n in plan.split.items() if n["clips"]]
    console.print(f"split by recording (group): {', '.join(sides)}", highlight=False, soft_wrap=True)
    console.print(
        f"{plan.max_steps:,} steps of {plan.batch_size:g} samples ({plan.tokens_per_step:,.0f} tokens), one pass over "
        f"the clips every {plan.steps_per_pass:.1f} steps",
        highlight=False,
        soft_wrap=True,
    )
    seen = plan.exposures
    console.print(
        f"exposures of each recording at the end: {seen['mean']:.1f} on average ({seen['min']} to {seen['max']}): "
        f"{plan.band}. Conservative up to {plan.conservative_max_steps:,} steps, moderate up to "
        f"{plan.moderate_max_steps:,}.",
        highlight=False,
        soft_wrap=True,
    )
    console.print(plan.advice, highlight=False, soft_wrap=True)
    checks = plan.checks
    console.print(
        f"checks: {checks['count']}, every {checks['interval']} steps, of {checks['held_out_clips']} validation clips: "
        f"they add about {100 * checks['share']:.0f} % to the cost of training",
        highlight=False,
        soft_wrap=True,
    )
    todo = plan.encode
    console.print(
        f"to encode: {todo['clips']} clips and {todo['captions']} captions, {todo['gigabytes']:.3f} GB; decoding takes "
        f"about {todo['decode_seconds']:.0f} s here, encoding with the VAE not counted",
        highlight=False,
        soft_wrap=True,
    )
