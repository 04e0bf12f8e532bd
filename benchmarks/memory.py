"""What the shipped configurations take of a GPU's memory, and which settings fit which card: forecasts, by no weights.

    python -m benchmarks.memory                 # the tables
    python -m benchmarks.memory --write         # into the heads of configs/*.yaml and docs/guides/cards.md
    python -m benchmarks.memory --configs ltx_video_lora wan2_1_1_3b_lora

A forecast runs the training step on tensors without values (`vidlit/forecast/`). The bases' configs are those of
`benchmarks/published_configs/`.
"""

import argparse
import math
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import yaml

from benchmarks.published import published_bases, write_published
from vidlit.commands.starting.shipped_configs import shipped_configs
from vidlit.diffusion.conditions import Condition
from vidlit.forecast.card import needs, parse_memory
from vidlit.forecast.memory_forecast import CAPTIONS, WITH_MODEL, RunSetting, foretell
from vidlit.forecast.remedies import Option, fit_to, resolved, small_base, swap, without_largest_bucket
from vidlit.models.adapters import LoRA
from vidlit.training.memory import Memory
from vidlit.training.module import VideoDiffusionModule
from vidlit.video.buckets import Bucket

ROOT = Path(__file__).parents[1]
CARDS = (12, 16, 24, 48, 80)
BEGIN, END = "<!-- forecast -->\n", "<!-- end of the forecast -->\n"


def run_of(path: Path, folder: Path, base: str = "") -> Option:
    """A shipped configuration as the forecast sees it, of its own base or of another one."""
    values = yaml.safe_load(path.read_text())
    model, trainer = values["model"], values["trainer"]
    options = model["optimizer"]["init_args"]
    module = VideoDiffusionModule(
        str(write_published(base or model["base"], folder)),
        adapter=LoRA(**model["adapter"]) if "adapter" in model else None,
        optimizer=partial(torch.optim.AdamW, **options),
        conditions=[Condition(**given) for given in model.get("conditions", [])] or None,
        memory=Memory(**model.get("memory", {})),
        fps=values["data"].get("fps"),
        audio=model.get("audio", "off"),
    )
    buckets = sorted(Bucket.parse(text) for text in values["data"]["buckets"])
    devices = int(trainer.get("devices", 1))
    setting = RunSetting(
        max(buckets, key=math.prod),
        precision=trainer["precision"],
        accumulate=trainer.get("accumulate_grad_batches", 1),
        clip_val=trainer["gradient_clip_val"],
        shards=devices,
        with_std=False,
    )
    return Option(module, setting, buckets)


def measure(name: str, path: Path) -> dict:
    """The forecast of one configuration as it is, and with its frozen weights in int8."""
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        run = run_of(path, Path(folder))
        forecast = foretell(run.module, run.setting)
        row = {"config": name, "clip": str(run.setting.bucket)}
        row |= {phase.name: round(phase.peak / 1e9, 1) for phase in forecast.phases}
        row |= {"unknown": [phase.name for phase in forecast.phases if phase.why], "needs": forecast.needs / 1e9}
        row["CPU s"] = round(time.process_time() - began, 1)
        if "base_dtype int8" in path.read_text().partition("seed_everything")[0] and row["train"]:
            row["int8"] = round(run.with_memory("", base_dtype="int8").peak_of(WITH_MODEL) / 1e9, 1)
    row["others"] = {base: _of_another(path, base) for base in named_beside(path.read_text())}
    return row


def named_beside(text: str) -> list[str]:
    """Bases that a configuration trains, too, as its head says with their memory."""
    head = text.partition("\n\nseed_everything")[0]
    return [base for base in published_bases() if re.search(_beside(base), head)]


def _beside(base: str) -> str:
    return rf"({re.escape(base)} \(about )\d+( GB)"


def _of_another(path: Path, base: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        run = run_of(path, Path(folder), base)
        return round(run.with_memory("", gradient_checkpointing=True).peak_of(WITH_MODEL) / 1e9, 1)


def with_figures(text: str, row: dict) -> str:
    """A configuration whose head has the figures of a row in place of those that it had."""
    head, seed, rest = text.partition("\n\nseed_everything")
    encode = max(row["encode captions"], row["encode clips"])
    figures = {
        r"(GPU memory: about )\d+( GB)": max(row["train"], row["checks"], row["audits"]),
        r"(about )\d+( GB\s(?:# )?to encode)": encode,
        r"(about )\d+( GB with base_dtype int8)": row.get("int8"),
        r"(base_dtype int8 about )\d+( GB)": row.get("int8"),
    } | {_beside(base): figure for base, figure in row["others"].items()}
    for pattern, figure in figures.items():
        if figure:
            head = re.sub(pattern, rf"\g<1>{math.ceil(figure)}\g<2>", head)
    for before, after in (
        ("(an estimate, not", "(a forecast, not"),
        ("(estimates,", "(forecasts,"),
        ("to train one clip", "to train and audit a clip"),
        ("the rest for one clip)", "the rest for one clip, all blocks recomputed)"),
    ):
        head = head.replace(before, after)
    head = re.sub(r"(a clip of )\d+x\d+x\d+", rf"\g<1>{row['clip']}", head)
    return head + seed + rest


def fitted(name: str, path: Path) -> list[str]:
    """For each card with what a configuration fits it, in words: blocks that are recomputed, and what is changed."""
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        run = run_of(path, Path(folder))
        captions = needs(run.peak_of([CAPTIONS]))
        for gigabytes in CARDS:
            memory = parse_memory(f"{gigabytes}GB").memory
            chosen = resolved(run, memory)
            found = fit_to(chosen, memory, _changes(chosen))
            if found.needs > memory:
                cells.append("no")
                continue
            changed = {key: value for key, value in found.options.items() if key not in chosen.options}
            words = [f"{key.split('.')[-1]} {value}" for key, value in changed.items()]
            words = [f"{found.recomputed:.0%} recomputed", *words, *(["captions elsewhere"] * (captions > memory))]
            cells.append(re.sub(r"[\[\]']", "", ", ".join(words)))
    return [f"`{name}.yaml`", *cells]


def _changes(run: Option) -> list[Callable[[Option], Option | None]]:
    """Those of the table of cards: fewer than a plan tries, for each takes seconds for each configuration."""
    return [_without_audits, partial(small_base, "int8"), swap, *[without_largest_bucket] * (len(run.buckets) - 1)]


def _without_audits(run: Option) -> Option:
    return run.changed(
        "overfitting seen in losses alone", {"samples.num_audit": 0}, setting=replace(run.setting, audits=False)
    )


def tables(rows: list[dict]) -> dict[str, str]:
    """What the guides show: memory by phase, and the cards that hold each configuration.

    Args:
        rows: of :func:`measure`.
    """
    columns = ["config", "clip", "encode captions", "encode clips", "train", "checks", "audits"]
    rows = sorted(rows, key=lambda row: row["needs"])
    figures = table(columns, [[row.get(column, "") for column in columns] for row in rows])
    cards = [[f"`{row['config']}.yaml`", f"{row['needs']:.0f} GB", *(holds(row, n) for n in CARDS)] for row in rows]
    return {"memory.md": figures, "cards.md": table(["config", "needs", *(f"{n} GB" for n in CARDS)], cards)}


def holds(row: dict, gigabytes: int) -> str:
    """With what a card holds a configuration, of what its figures tell: as it is, without audits, or in int8."""
    memory = parse_memory(f"{gigabytes}GB").memory

    def fits(peak: float) -> bool:
        return needs(1e9 * peak) <= memory

    encoding, steps = row["encode clips"], max(row["train"], row["checks"])
    ways = {"yes": max(steps, row["audits"]), "no audits": steps, "int8": row.get("int8", math.inf)}
    way = next((way for way, peak in ways.items() if fits(max(peak, encoding))), "")
    return f"{way}, captions elsewhere" if way and not fits(row["encode captions"]) else way


def table(header: list[str], rows: list[list]) -> str:
    """In Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def main(words: list[str] | None = None) -> list[dict]:
    """Print the tables, and write them where that is asked for; the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", help="names of shipped configurations (all)")
    parser.add_argument("--cards", action="store_true", help="print the changes of a LoRA for each card: a minute each")
    parser.add_argument("--write", action="store_true", help="into configs/ and docs/guides/")
    options = parser.parse_args(words)
    known = {config.name: config for config in shipped_configs().values() if config.base in published_bases()}
    rows = []
    for name in options.configs or sorted(known):
        path = ROOT / "configs" / f"{name}.yaml"
        rows.append(measure(name, path))
        print(rows[-1], flush=True)
        if options.write and not rows[-1]["unknown"]:
            path.write_text(with_figures(path.read_text(), rows[-1]))
        if options.cards and known[name].trains_adapter and not rows[-1]["unknown"]:
            print(fitted(name, path), flush=True)
    guides = tables(rows)
    for name, text in guides.items():
        print(text)
        path = ROOT / "docs" / "guides" / name
        if options.write and BEGIN in path.read_text():
            before, _, rest = path.read_text().partition(BEGIN)
            path.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")
    return rows


if __name__ == "__main__":
    main()
