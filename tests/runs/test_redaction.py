import subprocess
import sys
from string import ascii_letters, digits

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vidlit.commands.cli.configs import packaged_configs
from vidlit.commands.options.checking import all_names
from vidlit.commands.options.option_list import option_lists
from vidlit.runs.redaction import REDACTED, is_secret_name, redact, redact_text


def test_names_that_hold_secrets():
    config = {
        "trainer": {"logger": [{"init_args": {"project": "p", "settings": {"api_key": "abc", "entity": "me"}}}]},
        "hub_token": "short",
        "password": "x",
        "aws_secret": "y",
        "auth": None,
    }
    assert redact(config) == {
        "trainer": {"logger": [{"init_args": {"project": "p", "settings": {"api_key": REDACTED, "entity": "me"}}}]},
        "hub_token": REDACTED,
        "password": REDACTED,
        "aws_secret": REDACTED,
        "auth": None,
    }


def test_names_that_only_sound_like_it():
    config = {
        "batch_size": {"tokens": 4000, "power": 1.0},
        "max_tokens": 12,
        "author": "Kim",
        "keys": ["a"],
        "token": "",
    }
    assert redact(config) == config


def test_values_in_the_shape_of_keys():
    text = "at hf_abcdefghijklmnopqrstuvwx and https://me:pa55@host/path?x=1, base /models/sk-1"
    assert redact_text(text) == f"at {REDACTED} and https://{REDACTED}@host/path?x=1, base /models/sk-1"


def test_warnings_are_shown_as_before():
    """detect-secrets sends all of the process to a log when it is imported."""
    code = """
import warnings
shown = warnings.showwarning = lambda *_, **__: print("shown")
from vidlit.runs.redaction import redact_text
assert redact_text("AKIAIOSFODNN7EXAMPLE") != "AKIAIOSFODNN7EXAMPLE"
assert warnings.showwarning is shown
warnings.warn("of a run")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "shown\n"


def test_values_of_the_environment(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "canary-in-the-mine")
    monkeypatch.setenv("SOME_TOKEN", "word")  # too short to be one: every "word" would go
    assert redact({"notes": ["key canary-in-the-mine, a word"]}) == {"notes": [f"key {REDACTED}, a word"]}


# -- kinds: every secret, at every place


def of(alphabet, length):
    return st.text(alphabet, min_size=length, max_size=length)


LOWER, WORD = "abcdefghijklmnopqrstuvwxyz0123456789", ascii_letters + digits
SHAPES = {
    "hf_": of(WORD, 34),
    "wandb_v1_": of(WORD, 40),
    "sk-ant-api03-": of(WORD, 40),
    "sk-proj-": of(WORD, 48),
    "ghp_": of(WORD, 36),
    "github_pat_": of(WORD, 60),
    "glpat-": of(WORD, 20),
    "xoxb-1234567890-": of(LOWER, 24),
    "https://hooks.slack.com/services/T0ABCDEF/B0ABCDEF/": of(WORD, 24),
    "https://discord.com/api/webhooks/123456789/": of(WORD, 40),
    "sk_live_": of(WORD, 30),
    "rk_test_": of(WORD, 24),
    "AKIA": of("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16),
    "AIza": of(WORD, 35),
    "npm_": of(WORD, 36),
    "pypi-AgEIcHlwaS5vcmc": of(WORD, 90),
    "SG." + "a" * 22 + ".": of(WORD, 43),
    "dckr_pat_": of(WORD, 27),
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIi": of(WORD, 20).map(lambda text: f"{text}.{text}"),
    "-----BEGIN RSA PRIVATE KEY-----\n": of(WORD, 64).map(lambda text: f"{text}\n-----END RSA PRIVATE KEY-----"),
    "AccountKey=": of(WORD, 86).map(lambda text: f"{text}=="),
}
"""Keys of known services: how each begins, and the rest, which must be seen nowhere."""
NAMES = [
    *(
        "PGPASSWORD",
        "MYSQL_PWD",
        "GITLAB_PAT",
        "STRIPE_SK",
        "ENCRYPTION_KEY",
        "SLACK_WEBHOOK_URL",
        "HF_TOKEN",
        "DB_PASS",
    ),
    *("pwd", "api_keys", "tokens", "private-key", "accessKeyId", "apiKey", "APIKey", "hub_token", "clientSecret"),
    *("AWS_SECRET_ACCESS_KEY", "azure.storage-key", "Authorization", "credentials", "basic_auth", "wandbKey", "secret"),
]
"""Names of options and variables that hold something to keep to oneself, whatever it looks like."""
PLACES = [
    lambda value: value,
    lambda value: {"notes": f"ran with {value}, twice"},
    lambda value: {"tags": ["a", value]},
    lambda value: {"logger": [{"init_args": {"group": value, "settings": {"x": {"y": [[value]]}}}}]},
    lambda value: {value: 1},
    lambda value: {"url": f"https://{value}@host/path"},
    lambda value: {"url": f"https://me:{value}@host/path"},
    lambda value: {"url": f"s3://host/path?a=1&token={value}&b=2"},
]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), begin=st.sampled_from([*SHAPES]), place=st.sampled_from(PLACES))
def test_no_key_of_a_known_service_is_written_wherever_it_stands(data, begin, place):
    rest = data.draw(SHAPES[begin])
    config = place(begin + rest)
    shown = redact_text(config) if isinstance(config, str) else yaml.safe_dump(redact(config), width=10**6)
    for part in rest.partition("\n")[0].split("."):
        assert part not in shown


PLAIN = st.text(WORD, min_size=9, max_size=20).map(lambda text: f"q{text}Q7")
BY_NAME = [
    lambda name, value: {name: value},
    lambda name, value: {"a": [{"b": {name: value}}]},
    lambda name, value: {name: [value, {"deep": value}]},
    lambda name, value: {"command": f"vidlit fit --run.name x --logger.{name}={value} --refit"},
    lambda name, value: {"command": f"vidlit fit --run.name x --logger.{name} {value} --refit"},
    lambda name, value: {"environment": f"A=1 {name}={value} B=2"},
    lambda name, value: {"json": f'{{"{name}": "{value}", "b": 2}}'},
    lambda name, value: {"yaml": f"a: 1\n{name}: {value}\nb: 2"},
    lambda name, value: {"url": f"https://host/path?{name}={value}&b=2"},
]


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(NAMES), value=PLAIN, place=st.sampled_from(BY_NAME))
def test_nothing_under_a_secret_name_is_written_wherever_it_stands(name, value, place):
    shown = yaml.safe_dump(redact(place(name, value)), width=10**6)
    assert value not in shown


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from([name for name in NAMES if name.isupper()]), value=PLAIN)
def test_no_secret_of_the_environment_is_written(name, value):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, value)
        assert value not in str(redact({"notes": [f"with {value}."], value: {"deep": value}}))
        assert value not in redact_text(f"cannot log in with {value}")


def test_a_password_may_be_a_number_and_a_count_is_no_password():
    assert redact({"password": 12345678, "tokens": 4000, "db_password": True, "auth": {"user": "u", "n": 3}}) == {
        "password": REDACTED,
        "tokens": 4000,
        "db_password": True,
        "auth": {"user": REDACTED, "n": 3},
    }


ORDINARY = [
    {"max_tokens": "12", "num_tokens": "9", "tokenizer": "t5/tokenizer", "tokenizer_2": "x", "token_type": "bpe"},
    {"author": "Kim", "keys": ["a"], "key": "a", "monkey": "b", "passes": "2", "bypass": "c", "compass": "d"},
    {"private_key_path": "/home/me/.ssh/id", "token_file": "/run/token", "secret_dir": "x"},
    {"lr": 1e-4, "weight_decay": "0.01", "run": {"dir": "runs", "name": "my_style"}, "base": "Lightricks/LTX-Video"},
    {"sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "code": {"commit": "a" * 40}},
    {"prompt": "a key: under the mat, secretly; token of love", "url": "https://host:8080/path?step=3#top"},
    {"remote": "ssh://git@github.com/owner/name", "time": "12:30:05", "shape": "49x480x704", "uuid": "0" * 32},
    {"path": "C:\\Users\\me\\videos", "class_path": "lightning.pytorch.loggers.wandb.WandbLogger", "seed": 2**40},
]


@pytest.mark.parametrize("config", ORDINARY, ids=lambda config: next(iter(config)))
def test_ordinary_things_stay_word_for_word(config):
    assert redact(config) == config


@pytest.mark.parametrize("name", [*packaged_configs()])
def test_shipped_configs_stay_word_for_word(name):
    text = packaged_configs()[name].read_text()
    assert redact(yaml.safe_load(text)) == yaml.safe_load(text)
    assert redact_text(text) == text


def test_no_option_is_secret_by_its_name_but_one_that_takes_numbers():
    named = {option for command in option_lists().values() for option in all_names(command)}
    assert {option for option in named if is_secret_name(option)} == {
        "data.batches.size.tokens",
        "model.noise.process.shift.base_tokens",
        "token",  # of `vidlit watch`: whether to ask for one
    }
    assert redact_text("--data.batches.size.tokens=4000") == "--data.batches.size.tokens=4000"
