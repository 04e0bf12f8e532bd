"""What a config from a stranger may name: classes of a few kinds, at every place, and nothing else."""

import importlib
import inspect
import sys
import unicodedata
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentError, Namespace
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser, LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy

from vidlit import plugins
from vidlit.commands.cli.configs import (
    IMPORTABLE,
    KINDS,
    allow_imports,
    check_classes,
    check_run_name,
    expand_paths,
    packaged_configs,
)
from vidlit.commands.cli.parse_only import ParseOnly
from vidlit.commands.options.checking import check
from vidlit.commands.options.old_keys import without_removed
from vidlit.errors import UserError

QUICKSTART = ["fit", "--config", str(packaged_configs()["quickstart"])]


@pytest.fixture(scope="module")
def parser():
    """Options of the real types, in a parser that is made at once."""
    allow_imports()
    made = LightningArgumentParser(exit_on_error=False)
    made.add_argument("--optimizer", type=OptimizerCallable, default=torch.optim.AdamW)
    made.add_argument("--lr_scheduler", type=LRSchedulerCallable | None, default=None)
    made.add_argument("--callbacks", type=list[Callback] | None, default=None)
    made.add_argument("--logger", type=Logger | list[Logger] | bool | None, default=None)
    made.add_argument("--strategy", type=str | Strategy, default="auto")
    made.add_argument("--anything", type=object, default=None)
    return made


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module whose import leaves a mark; fails the test if it did."""
    (tmp_path / "evil.py").write_text("import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "evil.py"
    sys.modules.pop("evil", None)
    assert not (tmp_path / "ran").exists()


HOSTILE = {
    "builtins.exec": {"source": "raise SystemExit"},
    "os.system": {"command": "true"},
    "subprocess.Popen": {"args": ["true"]},
    "evil.Anything": {},
    "torch.load": {"f": "x.pt", "weights_only": False},
    "torch.hub.load": {"repo_or_dir": ".", "model": "evil", "source": "local"},
    "torch.utils.cpp_extension.load_inline": {"name": "x", "cpp_sources": ""},
    "torch.nn.Linear": {"in_features": 1, "out_features": 1},
    "torch.optim.AdamW.step": {},
    "torch.optim.adamw.adamw": {},
    "torch.optim.optimizer.register_optimizer_step_post_hook": {},
    "torch.optim.lr_scheduler.partial": {"func": "os.system"},
    "torch.optim.lr_scheduler.sys.modules": {},
    "torch.optim.swa_utils.get_ema_avg_fn": {},
    "lightning.pytorch.Trainer": {},
    "lightning.pytorch.trainer.Trainer": {},
    "lightning.pytorch.cli.LightningCLI": {},
    "lightning.pytorch.loggers.wandb.Path": {},
    "wandb.__main__.cli": {},
    "diffusers.DiffusionPipeline.from_pretrained": {"custom_pipeline": "."},
    "jsonargparse.set_parsing_settings": {},
    "functools.partial": {},
    "vidlit.plugins._load": {"name": "evil.py"},
    "vidlit.plugins.active": {"named": ["evil.py"]},
    "vidlit.plugins.importlib.import_module": {"name": "evil"},
    "vidlit.commands.cli.dispatch.dispatch": {"words": ["fit", "--plugin", "evil.py"]},
    "vidlit.runs.checkpoint_files.remove_checkpoint": {"path": "."},
    "vidlit.runs.checkpoint_files.shutil.rmtree": {"path": "."},
    "vidlit": {},
    "": {},
    "..": {},
}
LAMBDA = "torch.optim.lr_scheduler.LambdaLR"
PLACES = {
    "an optimizer": lambda spec: {"optimizer": spec},
    "a schedule": lambda spec: {"lr_scheduler": spec},
    "a callback": lambda spec: {"callbacks": [spec]},
    "a logger": lambda spec: {"logger": spec},
    "one of two loggers": lambda spec: {"logger": [{"class_path": "lightning.pytorch.loggers.CSVLogger"}, spec]},
    "a strategy": lambda spec: {"strategy": spec},
    "a function of a schedule": lambda spec: {"lr_scheduler": {"class_path": LAMBDA, "init_args": {"lr_lambda": spec}}},
    "several of them": lambda spec: {"lr_scheduler": {"class_path": LAMBDA, "init_args": {"lr_lambda": [spec]}}},
    "a function of a callback": lambda spec: {
        "callbacks": [{"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"on_fit_start": spec}}]
    },
    "a function of a strategy": lambda spec: {
        "strategy": {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"ddp_comm_hook": spec}}
    },
    "what nobody checks": lambda spec: {
        "logger": {
            "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
            "init_args": {"save_dir": "x"},
            "dict_kwargs": {"comment": {"a": [spec]}},
        }
    },
    "an option for anything": lambda spec: {"anything": {"deep": [spec]}},
}


BY_NAME = [place for place in PLACES if place not in ("what nobody checks", "an option for anything", "a strategy")]
"""Places where the name of a class alone stands for it; a strategy has names of its own."""
EVERY = [11, pytest.param(1, marks=pytest.mark.slow)]


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("place", PLACES)
def test_a_config_names_nothing_but_classes_that_options_are_for(parser, trap, place, every):
    for path in [*HOSTILE][[*PLACES].index(place) % every :: every]:
        with pytest.raises((UserError, ArgumentError)):
            check_classes(parser.parse_object(PLACES[place]({"class_path": path, "init_args": HOSTILE[path]})))


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("place", BY_NAME)
def test_nor_by_its_name_alone(parser, trap, place, every):
    for path in [*HOSTILE][[*PLACES].index(place) % every :: every]:
        with pytest.raises((UserError, ArgumentError)):
            check_classes(parser.parse_object(PLACES[place](path)))


MODULES = [
    "torch.optim",
    "torch.optim.lr_scheduler",
    "torch.optim.swa_utils",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.strategies",
    "lightning.pytorch.profilers",
    "lightning.pytorch.plugins",
    "vidlit.plugins",
    "vidlit.runs.checkpoint_files",
    "vidlit.commands.cli.dispatch",
]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_function_or_module_of_the_allowed_packages_passes(data):
    """Whatever they hold under any name, their own or imported, at any depth of a config."""
    module = importlib.import_module(data.draw(st.sampled_from(MODULES)))
    others = sorted(name for name, value in vars(module).items() if not inspect.isclass(value))
    name = data.draw(st.sampled_from(others))
    spec = {"class_path": f"{module.__name__}.{name}"}
    for _ in range(data.draw(st.integers(0, 4))):
        spec = data.draw(
            st.sampled_from([[spec], {"init_args": {"a": spec}}, {"dict_kwargs": {"b": [spec]}}, Namespace(c=spec)])
        )
    with pytest.raises(UserError, match="is not what this option is for"):
        check_classes(Namespace(model=spec))
    if inspect.isroutine(vars(module)[name]):
        with pytest.raises(UserError):
            check_classes(Namespace(model=Namespace(optimizer=vars(module)[name])))


RIGHT = [
    {"optimizer": "AdamW"},
    {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}},
    {"optimizer": "schedulefree.AdamWScheduleFree"},
    {"lr_scheduler": {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": 9}}},
    {"lr_scheduler": {"class_path": "lightning.pytorch.cli.ReduceLROnPlateau", "init_args": {"monitor": "val/loss"}}},
    {"callbacks": ["lightning.pytorch.callbacks.Timer", {"class_path": "DeviceStatsMonitor"}]},
    {"logger": [{"class_path": "WandbLogger"}, {"class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                                                "init_args": {"save_dir": "x"}}]},
    {"strategy": "ddp"},
    {"strategy": {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}},
]  # fmt: skip


@pytest.mark.parametrize("config", RIGHT, ids=str)
def test_what_options_are_for_passes(parser, config):
    check_classes(parser.parse_object(config))


TAKE_FUNCTIONS = {
    "LambdaLR", "MultiplicativeLR", "CyclicLR",
    "BackboneFinetuning", "LambdaCallback", "ModelPruning", "StochasticWeightAveraging", "ThroughputMonitor",
    "DDPStrategy",
}  # fmt: skip
"""Allowed classes that take a function: it can be none but a plugin's, so these do what the rest of the config says."""


def allowed_classes():
    """Every class that a config may name, of the packages that come with vidlit's own requirements."""
    modules = [name for name in IMPORTABLE if name.startswith(("torch.", "lightning.")) and not name[-1].isupper()]
    for name in [*modules, "torch.optim.lr_scheduler", "lightning.pytorch.plugins.environments"]:
        if name.endswith("ReduceLROnPlateau"):
            continue
        for found in vars(importlib.import_module(name)).values():
            kinds = {f"{base.__module__}.{base.__qualname__}" for base in getattr(found, "__mro__", ())}
            if inspect.isclass(found) and kinds & KINDS:
                yield found


def test_every_allowed_class_is_of_a_kind_that_runs_nothing_it_is_given():
    """A new one of Lightning's that takes functions turns up here; none is a callable itself."""
    classes = set(allowed_classes())
    assert len(classes) > 80
    taking = set()
    for each in classes:
        assert "__call__" not in {name for base in each.__mro__[:-1] for name in vars(base)}
        if any("Callable" in str(given.annotation) for given in inspect.signature(each).parameters.values()):
            taking.add(each.__name__)
    assert taking == TAKE_FUNCTIONS


def test_a_plugins_own_functions_and_classes_may_be_named(parser, tmp_path, monkeypatch):
    rules = tmp_path / "own_rates.py"
    rules.write_text("def halve(step):\n    return 0.5 ** step\n")
    config = {"lr_scheduler": {"class_path": LAMBDA, "init_args": {"lr_lambda": "own_rates.halve"}}}
    with plugins.active([str(rules)]):
        allow_imports()
        check_classes(parser.parse_object(config))
    allow_imports()
    with pytest.raises((UserError, ArgumentError)):
        check_classes(parser.parse_object(config))
    sys.modules.pop("own_rates")


@pytest.mark.parametrize(
    "extra",
    [
        {"model": {"optimizer": {"class_path": "torch.load", "init_args": {"f": "x"}}}},
        {"model": {"lr_scheduler": {"class_path": "vidlit.plugins._load", "init_args": {"name": "evil.py"}}}},
    ],
    ids=["denied", "of the package"],
)
def test_the_real_parser_refuses_as_well(trap, extra):
    with pytest.raises((UserError, ArgumentError)):
        ParseOnly([*QUICKSTART, f"--config={yaml.safe_dump(extra, default_flow_style=True, width=10**6).strip()}"])


# -- what checkpoints are read with is no option


@pytest.mark.parametrize(
    ("text", "is_right"), [("true", True), ("null", True), ("", True), ("false", False), ("0", False)]
)
def test_an_old_config_may_say_that_checkpoints_are_only_numbers(tmp_path, text, is_right):
    path = tmp_path / "config.yaml"
    path.write_text(f"weights_only: {text}\n")
    words = [*QUICKSTART, "--config", str(path)]
    if is_right:
        assert check(words)
        assert without_removed(yaml.safe_load(path.read_text())) == {}
        return
    with pytest.raises(UserError, match=r"line 1: weights_only: weights_only: \S+ would run whatever code"):
        check(words)
    with pytest.raises(UserError, match="would run"):
        without_removed(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_no_command_takes_weights_only(command):
    with pytest.raises(UserError, match="--weights_only: there is no such option"):
        check([command, "--config", "quickstart", "--weights_only=false"])


# -- names of runs


@pytest.mark.parametrize("name", ["quickstart", "my run", "LTX_lora-2.1", "Ünï+1", "k=3@a", "a" * 100])
def test_a_run_has_a_plain_name(name):
    check_run_name(Namespace(run=Namespace(name=name)))


NO_NAMES = [
    *("../x", "..", ".", "a/b", "a\\b", "/a", "~", "-x", " a", "a ", "a.", "NUL", "con.txt", "a\nb", "a" * 101),
    *("<script>", "[x](y)", "a|b", "`x`", "$HOME", "\x1b[31m", "\ud800", "a:b", "# x", "a*"),
]


@settings(max_examples=100, deadline=None)
@given(before=st.text("ab", max_size=2), one=st.characters(exclude_categories=["L", "N", "M"]), after=st.text("ab"))
@example(before="a", one="/", after="b")
def test_no_other_sign_stands_in_a_name_of_a_run(before, one, after):
    if one in " _.+=@-" or unicodedata.category(one) == "Pc":
        return
    with pytest.raises(UserError, match="name of one folder"):
        check_run_name(Namespace(run=Namespace(name=f"{before}{one}{after}")))


@pytest.mark.parametrize("name", NO_NAMES, ids=ascii)
def test_nothing_else_is_a_name_of_a_run(name):
    below = Namespace(run=Namespace(name=name))
    for config in (below, Namespace(subcommand="fit", fit=below)):
        with pytest.raises(UserError, match="name of one folder"):
            check_run_name(config)


def test_a_checkpoint_changes_no_option(tmp_path):
    """Lightning's own command line takes hyperparameters of a checkpoint for options, classes as well."""
    changed = {"seed": 99, "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 9.0}}}
    torch.save({"hyper_parameters": changed}, tmp_path / "last.ckpt")
    given = ParseOnly([*QUICKSTART, f"--ckpt_path={tmp_path / 'last.ckpt'}"]).config.fit.model
    as_written = ParseOnly(QUICKSTART).config.fit.model
    assert given == as_written


def test_paths_of_a_config_know_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("DATA", "my_data")
    config = Namespace(
        run=Namespace(dir=Path("~/runs")),
        data=Namespace(source="$HOME/clips", store=Path("${HOME}/a/$DATA"), base="owner/model"),
        model=Namespace(base="a~b/$NOWHERE"),
        ckpt_path="last",
    )
    expand_paths(Namespace(subcommand="fit", fit=config))
    assert config.run.dir == tmp_path / "runs"
    assert (config.data.source, config.data.store) == (f"{tmp_path}/clips", tmp_path / "a/my_data")
    assert (config.data.base, config.model.base, config.ckpt_path) == ("owner/model", "a~b/$NOWHERE", "last")


@pytest.mark.parametrize("words", [["--data.buckets", "17x48x80"], ["--data.buckets=17x48x80"]])
def test_one_bucket_needs_no_brackets(words):
    checked = check([*QUICKSTART, *words])
    assert checked[3:] == [word.replace("17x48x80", "[17x48x80]") for word in words]
