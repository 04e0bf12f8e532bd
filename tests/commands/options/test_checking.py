"""Mistakes that are told in one line, quickly, with what was probably meant."""

import re
import subprocess
import sys

import pytest
import yaml

from vidlit.commands.cli.configs import find_config, packaged_configs
from vidlit.commands.options.checking import check, values_of
from vidlit.errors import UserError

QUICKSTART = ["--config", "quickstart"]
WORDS = {
    "an option": (["fit", *QUICKSTART, "--data.sorce", "x"], "--data.sorce", "Did you mean --data.source?"),
    "with its value": (["fit", *QUICKSTART, "--data.sorce=x"], "--data.sorce", "Did you mean --data.source?"),
    "another section's": (["fit", *QUICKSTART, "--max_steps", "3"], "--max_steps", "--trainer.max_steps?"),
    "the learning rate": (["fit", *QUICKSTART, "--lr=3"], "--lr", "--model.optimizer.init_args.lr?"),
    "below a dataclass": (["fit", *QUICKSTART, "--model.adapter.rnk=3"], "adapter.rnk", "--model.adapter.rank?"),
    "below a number": (["fit", *QUICKSTART, "--trainer.max_steps.x=3"], "max_steps.x", "--trainer.max_steps?"),
    "a word for a number": (["fit", *QUICKSTART, "--trainer.max_steps=many"], "max_steps many", "a whole number"),
    "a choice": (["fit", *QUICKSTART, "--export.base_parts=lnk"], "base_parts lnk", "Did you mean link?"),
    "no config": (["fit"], "fit needs a config", "--config quickstart"),
    "a config without its option": (["fit", "configs/quickstart.yaml"], "--config configs/quickstart.yaml"),
    "a config's name": (["fit", "--config", "quickstrt"], "quickstrt: no such file", "Did you mean quickstart?"),
    "predict's own": (["predict", *QUICKSTART, "--promts", "a"], "--promts", "Did you mean --prompts?"),
    "kfold's own": (["kfold", *QUICKSTART, "--fold=3"], "--fold", "Did you mean"),
    "without a config": (["report", "run", "--megabites=3"], "--megabites", "Did you mean --megabytes?"),
}


@pytest.mark.parametrize("case", WORDS)
def test_a_mistake_in_words_names_what_was_meant(case):
    words, *parts = WORDS[case]
    with pytest.raises(UserError) as caught:
        check(words)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    for part in parts:
        assert part in line


FILES = {
    "a key": ("data:\n  fps: 16\n  sorce: clips\n", "line 3: data.sorce", "Did you mean data.source?"),
    "a section": ("dta:\n  fps: 16\n", "line 1: dta", "no such option"),
    "no YAML": ("data:\n  source: [a\nmodel: 3\n", "line 3 is not valid YAML"),
    "a tab": ("data:\n\tfps: 16\n", "line 2 is not valid YAML"),
    "a list": ("- a\n- b\n", "is not a config"),
    "a word for a number": ("trainer:\n  max_steps: many\n", "line 2: trainer.max_steps many", "a whole number"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_mistake_in_a_file_names_file_and_line(case, tmp_path):
    text, *parts = FILES[case]
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        check(["fit", *QUICKSTART, "--config", str(path)])
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    for part in (str(path), *parts):
        assert part in line


def test_what_is_no_text_is_no_yaml(tmp_path):
    path = tmp_path / "video.yaml"
    path.write_bytes(bytes(range(128, 256)))
    with pytest.raises(UserError, match="it is not text"):
        check(["fit", "--config", str(path)])


@pytest.mark.parametrize("name", [name for name in packaged_configs() if name != "sweep"])
def test_shipped_configs_have_nothing_to_tell(name):
    words = ["fit", "--config", name]
    assert check(words) == ["fit", "--config", str(find_config(name))]


def test_what_a_run_saved_has_nothing_to_tell(finished_run):
    config = str(finished_run / "config.yaml")
    assert len(yaml.safe_load((finished_run / "config.yaml").read_text())["trainer"]) > 20
    assert check(["fit", "--config", config, "--ckpt_path=last"])[2] == config


RIGHT = [
    ["fit", *QUICKSTART, "--data.buckets", "[5x48x80]", "--model.adapter", "{rank: 4}", "--model.adapter.rank=8"],
    ["fit", *QUICKSTART, "--model.optimizer", "torch.optim.SGD", "--model.optimizer.init_args.lr", "-1"],
    ["fit", *QUICKSTART, "--trainer.callbacks+=lightning.pytorch.callbacks.Timer", "--demo.num_videos=3"],
    ["fit", "--config", "{seed_everything: 1}", *QUICKSTART],
    ["fit", "--config=quickstart", "--model.ema.decay=0.9", "--demo=null", "--print_config"],
    ["fit", "--model.base=b", "--data.source=s", "--data.store=l", "--data.buckets=[5x48x80]"],
    ["fit", "--trainer.accelerator.help"],
    ["kfold", *QUICKSTART, "--folds=3"],
    ["dashboard", "--config", "configs/quickstart.yaml", "--dry-run"],
    ["report", "a", "b", "--out", "c.html"],
]


@pytest.mark.parametrize("words", RIGHT, ids=" ".join)
def test_what_is_right_passes(words):
    if "--trainer.accelerator.help" in words:
        words = [*words, *QUICKSTART]
    assert len(check(words)) == len(words)


def test_a_mistake_is_told_before_anything_slow_is_imported():
    code = (
        "import sys; from vidlit.__main__ import main; code = main(['fit', '--config', 'quickstart', '--data.s=x']); "
        "print('LOADED', *sorted({'torch', 'lightning', 'jsonargparse', 'numpy'} & set(sys.modules))); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert re.fullmatch(r"vidlit: error: --data.s: [^\n]*\n", done.stderr)
    assert done.stdout == "LOADED\n"


def test_values_are_read_as_the_parser_will_read_them(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("run:\n  name: mine\ndata:\n  source: clips\n")
    words = check(["fit", *QUICKSTART, "--config", str(path), "--run.name=later", "--run.dir", "elsewhere"])
    names = ("run.name", "run.dir", "data.source", "model.base", "ckpt_path")
    assert values_of(words, *names) == {
        "run.name": "later",
        "run.dir": "elsewhere",
        "data.source": "clips",
        "model.base": "demo/base",
    }
