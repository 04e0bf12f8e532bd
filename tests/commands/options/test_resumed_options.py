import copy
import re

import pytest
import yaml

from tests.conftest import CONFIGS
from vidlit.commands.options.option_list import option_lists
from vidlit.commands.options.resumed_options import (
    APPLIED,
    NOT_COMPARED,
    REFUSED,
    as_markdown,
    changed_options,
    rule_of,
)
from vidlit.errors import UserError
from vidlit.runs.directory import RunDirectory


@pytest.fixture(scope="module")
def saved():
    """What a fit of the quickstart is saved with."""
    from vidlit.commands.cli.lightning_cli import config_text
    from vidlit.commands.cli.parse_only import ParseOnly
    from vidlit.lightning_internals import parser_of

    cli = ParseOnly(["fit", "--config", str(CONFIGS / "quickstart.yaml")])
    return yaml.safe_load(config_text(parser_of(cli, "fit"), cli.config.fit))


def walk(config):
    """Every option that can be set, as a path into the config."""
    names = option_lists()["fit"].options
    sections = {name.rpartition(".")[0] for name in names}
    for name in sorted(names):
        if name in sections or any(name == each or name.startswith(f"{each}.") for each in NOT_COMPARED):
            continue
        path = name.split(".")
        place = config
        for key in path[:-1]:
            place = place.get(key) if isinstance(place, dict) else None
        if isinstance(place, dict) and path[-1] in place:
            yield name, path


def with_changed(config, path):
    changed = copy.deepcopy(config)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = "something else"
    return changed


def test_every_option_of_a_fit_is_applied_or_refused_by_name(saved, tmp_path):
    directory = RunDirectory(tmp_path / "runs" / "elsewhere" / "0")
    directory.path.mkdir(parents=True)
    directory.config.write_text(yaml.safe_dump(saved))
    walked = dict(walk(saved))
    assert {"model.base", "data.batches.size", "trainer.max_steps", "trainer.precision"} <= walked.keys()
    assert len([name for name in walked if name.split(".")[0] in ("model", "data", "trainer")]) > 65
    for name, path in walked.items():
        text = yaml.safe_dump(with_changed(saved, path))
        if rule_of(name) in REFUSED:
            with pytest.raises(UserError, match=re.escape(f"{name} ")) as error:
                changed_options(directory, text)
            assert REFUSED[rule_of(name)] in str(error.value)
        else:
            assert [change.option for change in changed_options(directory, text)] == [name]


def test_every_rule_is_about_an_option_that_there_is():
    names = option_lists()["fit"].options
    known = {name.rsplit(".", count)[0] for name in names for count in range(3)}
    for rule in (*REFUSED, *APPLIED, *NOT_COMPARED):
        assert rule.removesuffix(".class_path") in known, rule


def test_options_of_classes_are_told_by_their_own_names(saved, tmp_path):
    directory = RunDirectory(tmp_path)
    directory.config.write_text(yaml.safe_dump(saved))
    asked = copy.deepcopy(saved)
    asked["run"]["dir"] = "elsewhere"  # the run was moved
    asked["model"]["optimizer"]["init_args"]["lr"] = 1e-5
    (change,) = changed_options(directory, yaml.safe_dump(asked))
    assert change.option == "model.optimizer.init_args.lr"
    assert str(change).endswith("-> 1e-05")
    asked["model"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
    asked["model"]["adapter"] = {"rank": 4, "alpha": 1.0}
    with pytest.raises(UserError) as error:
        changed_options(directory, yaml.safe_dump(asked))
    assert "model.optimizer.class_path" in str(error.value)
    assert "model.adapter" in str(error.value)


def test_a_config_of_an_earlier_version_lacks_options_and_has_others(saved, tmp_path):
    directory = RunDirectory(tmp_path)
    earlier = copy.deepcopy(saved)
    del earlier["samples"]["max_share"]
    earlier["model"]["gone_since"] = 1
    directory.config.write_text(yaml.safe_dump(earlier))
    assert changed_options(directory, yaml.safe_dump(saved)) == []


def test_all_batches_are_all_batches_however_that_is_said(saved, tmp_path):
    directory = RunDirectory(tmp_path)
    directory.config.write_text(yaml.safe_dump(saved))
    asked = {**saved, "trainer": {**saved["trainer"], "limit_val_batches": 1.0}}
    assert saved["trainer"]["limit_val_batches"] is None
    assert changed_options(directory, yaml.safe_dump(asked)) == []


def test_sound_is_on_or_off_in_quotes_or_without(saved, tmp_path):
    """YAML makes booleans of these words; the command line keeps them."""
    directory = RunDirectory(tmp_path)
    texts = {word: yaml.safe_dump(saved | {"model": saved["model"] | {"audio": word}}) for word in (True, "on", "only")}
    directory.config.write_text(texts[True])
    assert changed_options(directory, texts["on"]) == []
    directory.config.write_text(texts["on"])
    assert changed_options(directory, texts[True]) == []
    with pytest.raises(UserError, match=r"model\.audio"):
        changed_options(directory, texts["only"])


def test_the_guide_has_the_table():
    guide = (CONFIGS.parent / "docs" / "guides" / "resuming.md").read_text()
    assert as_markdown() in guide
