"""What ran under the names of version 0 runs on, and one line a name says what it is called now."""

import importlib
import itertools
import json

import pytest
import yaml

from vidlit.commands.cli.parse_only import ParseOnly
from vidlit.commands.options import old_keys
from vidlit.commands.options.checking import check
from vidlit.commands.options.old_keys import NEW_KEYS, NEW_PATHS, rename_words
from vidlit.errors import UserError

BASE = ["--data.source=clips", "--data.store=latents", "--data.buckets=[9x64x64]", "--model.base=base"]
VALUES = {
    "data.batch_size": 4,
    "data.val_batch_size": 3,
    "data.small_bucket": "short",
    "data.num_workers": 2,
    "data.clip_mode": "slide",
    "data.max_clips_per_video": 5,
    "data.upscale": True,
    "data.val_fraction": 0.5,
    "data.test_fraction": 0.1,
    "data.fold": {"number": 1, "of": 3},
    "data.train_on_val": True,
    "data.max_val_clips": 7,
    "data.encode_workers": 1,
    "data.dtype": "float32",
    "data.latents": "sample",
    "model.noising": {"distribution": "uniform", "shift": 3.0},
    "model.num_strata": 2,
    "model.first_frame": 0.2,
    "model.noise.first_frame": 0.2,
    "model.base_dtype": "bfloat16",
    "model.gradient_checkpointing": True,
    "model.compile": True,
    "model.on_bad_loss": "stop",
    "model.max_bad_steps": 3,
    "wandb": {"file_names": True},
}
"""One of each old key, none of them the default."""
OPTIMIZER = "vidlit.optimizers.MuonAdamW"
BUDGET = {"class_path": "vidlit.data.datamodule.BatchBudget", "init_args": {"tokens": 160}}


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch):
    monkeypatch.setattr(old_keys, "_told", set())


def parse(*words):
    return ParseOnly(["fit", *BASE, *words]).config.fit


def is_set(config, key, value):
    found = config[NEW_KEYS[key]]
    if NEW_KEYS[key] == "model.conditions":
        return [vars(each) for each in found] == [{"frames": "first", "share": value}]
    return found == value or found.as_dict().items() >= value.items()


def told(capsys):
    return sorted(line for line in capsys.readouterr().err.splitlines() if line.startswith("vidlit"))


LINES = sorted(f"vidlit: {key} is now {NEW_KEYS[key]}" for key in VALUES)


def test_every_row_is_tried():
    assert VALUES.keys() == NEW_KEYS.keys()


@pytest.mark.parametrize("joined", [True, False])
def test_old_options_on_the_command_line(joined, capsys):
    words = [
        (f"--{key}", json.dumps(value) if isinstance(value, dict) else str(value)) for key, value in VALUES.items()
    ]
    config = parse(*("=".join(pair) for pair in words)) if joined else parse(*itertools.chain(*words))
    assert all(is_set(config, key, value) for key, value in VALUES.items())
    assert told(capsys) == LINES


def test_old_keys_in_a_config(tmp_path, capsys):
    sections = {}
    for key, value in VALUES.items():
        *above, name = key.split(".")
        place = sections
        for each in above:
            place = place.setdefault(each, {})
        place[name] = value
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(sections))
    assert check(["fit", *BASE, "--config", str(path)])
    assert told(capsys) == LINES
    config = parse("--config", str(path))
    assert all(is_set(config, key, value) for key, value in VALUES.items())
    assert told(capsys) == []


def test_a_mistake_beside_old_keys_is_told_where_it_stands(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text("data:\n  fold: {number: 0, off: 3}\n  batch_size: many\n")
    with pytest.raises(UserError, match=r"line 2: data\.split\.fold\.off.*Did you mean data\.split\.fold\.of\?"):
        check(["fit", *BASE, "--config", str(path)])


def test_one_line_a_name_whatever_the_number_of_files_and_words(tmp_path, capsys):
    path = tmp_path / "old.yaml"
    path.write_text("data: {batch_size: 2}")
    assert parse("--config", str(path), f"--config={path}", "--data.batch_size=3").data.batches.size == 3
    assert told(capsys) == ["vidlit: data.batch_size is now data.batches.size"]


def test_old_and_new_keys_of_one_section_and_what_comes_last_wins(tmp_path, capsys):
    path = tmp_path / "mixed.yaml"
    path.write_text("data: {batch_size: 4, batches: {num_workers: 2}, fold: {number: 0, of: 4}}")
    config = parse(f"--config={path}", "--data.fold.number=2", "--data.batches.val_size=3", "--data.batch_size=5")
    assert vars(config.data.batches) == {"size": 5, "val_size": 3, "small_bucket": "repeat", "num_workers": 2}
    assert vars(config.data.split.fold) == {"number": 2, "of": 4}
    assert told(capsys) == [f"vidlit: {key} is now {NEW_KEYS[key]}" for key in ("data.batch_size", "data.fold")]


def test_a_whole_section_at_once(tmp_path, capsys):
    path = tmp_path / "model.yaml"
    path.write_text("num_strata: 2")
    config = parse("--data", "{batch_size: 4}", f"--model={path}")
    assert (config.data.batches.size, config.model.noise.num_strata) == (4, 2)
    assert len(told(capsys)) == 2


@pytest.mark.parametrize("key", ["first_frame", "noise.first_frame"])
def test_a_share_of_first_frames_is_an_entry_of_the_list_and_none_where_it_is_0(key, tmp_path):
    name, below = key.rpartition(".")[2], key.count(".")
    for share, listed in ((0.2, [{"frames": "first", "share": 0.2}]), (0, None), (0.0, None)):
        path = tmp_path / "old.yaml"
        path.write_text(yaml.safe_dump({"model": {"noise": {name: share}} if below else {name: share}}))
        for words in ([f"--model.{key}={share}"], [f"--model.{key}", str(share)], ["--config", str(path)]):
            found = parse(*words).model.conditions
            assert (found and [vars(each) for each in found]) == listed


def test_a_config_of_the_command_before_it(tmp_path, capsys):
    path = tmp_path / "whole.yaml"
    path.write_text("fit: {data: {batch_size: 4}}")
    assert ParseOnly(["--config", str(path), "fit", *BASE]).config.fit.data.batches.size == 4
    assert told(capsys) == ["vidlit: data.batch_size is now data.batches.size"]


def test_new_keys_say_nothing(capsys):
    config = parse("--data.batches.size=4", "--model.noise.num_strata=2", "--run.name=data.batch_size")
    assert (config.data.batches.size, config.run.name) == (4, "data.batch_size")
    assert told(capsys) == []


@pytest.mark.parametrize("where", ["word", "option", "config"])
def test_classes_under_their_old_paths(where, tmp_path, capsys):
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump({"model": {"optimizer": {"class_path": OPTIMIZER, "init_args": {"lr": 0.01}}}}))
    words = {
        "word": ["--model.optimizer", OPTIMIZER],
        "option": [f"--model.optimizer={OPTIMIZER}"],
        "config": ["--config", str(path)],
    }
    config = parse(*words[where], f"--data.batches.size={BUDGET}")
    assert config.model.optimizer.class_path == "vidlit.training.optimizers.MuonAdamW"
    assert config.data.batches.size.tokens == 160
    assert told(capsys) == [
        "vidlit: vidlit.data.datamodule.BatchBudget is now vidlit.data.BatchBudget",
        f"vidlit: {OPTIMIZER} is now vidlit.training.optimizers.MuonAdamW",
    ]


@pytest.mark.parametrize("new", NEW_PATHS.values())
def test_new_paths_lead_somewhere(new):
    module, _, name = new.rpartition(".")
    assert hasattr(importlib.import_module(module), name) or importlib.import_module(new)


def test_values_that_only_look_like_it_stay(capsys):
    words = ["--run.name=vidlit.optimizers", "vidlit.optimizers_of_mine.Muon", "--data.batch_sizes=3", "-v", "--data"]
    assert rename_words(words)[1:] == words[1:]
