"""Every shipped YAML parses, through the very parser that `vidlit` uses."""

from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentError

from vidlit.commands.cli.parse_only import ParseOnly

CONFIGS = Path(__file__).parents[1] / "configs"
WHOLE = sorted(path for path in CONFIGS.glob("*.yaml") if path.name != "sweep.yaml")  # W&B's own format


@pytest.mark.parametrize("command", ["fit", "encode"])
@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.stem)
def test_config_parses(path, command):
    written = yaml.safe_load(path.read_text())
    config = ParseOnly([command, "--config", str(path)]).config[command]
    assert config.model.base == written["model"]["base"]
    assert config.data.base == config.model.base
    assert config.model.fps == config.data.fps
    assert config.data.buckets == written["data"]["buckets"]
    assert config.model.seed == config.data.seed == written.get("seed_everything", 0)
    assert config.trainer.max_steps == written["trainer"]["max_steps"]
    assert config.trainer.check_val_every_n_epoch is None


def test_parsing_from_python_warns_of_nothing(recwarn, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pytest", "-q"])
    ParseOnly(["fit", "--config", str(CONFIGS / "quickstart.yaml")])
    assert [str(warning.message) for warning in recwarn] == []


def test_configs_are_there():
    assert CONFIGS / "quickstart.yaml" in WHOLE


def refusal(words, capsys):
    """What the parser says when it refuses, however it does."""
    with pytest.raises((SystemExit, ArgumentError)) as caught:
        ParseOnly(words)
    return f"{caught.value} {capsys.readouterr().err}"


def test_a_misspelt_key_in_a_config_is_refused(tmp_path, capsys):
    """So that the test above means something."""
    config = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())
    config["data"]["batches"] = {"sise": 8}
    path = tmp_path / "misspelt.yaml"
    path.write_text(yaml.safe_dump(config))
    assert "sise" in refusal(["fit", "--config", str(path)], capsys)


def test_a_config_cannot_import_what_it_likes(tmp_path, capsys, monkeypatch):
    """Naming a class imports its module, so only modules of a short list may be named."""
    marker = tmp_path / "was_imported"
    (tmp_path / "intruder_module.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    extra = tmp_path / "extra.yaml"
    extra.write_text("trainer:\n  callbacks:\n  - class_path: intruder_module.Anything\n")
    words = ["fit", "--config", str(CONFIGS / "quickstart.yaml"), "--config", str(extra)]
    assert "intruder_module" in refusal(words, capsys)
    assert not marker.exists()
