from vidlit.runs.redaction import REDACTED, redact, redact_text


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


def test_values_of_the_environment(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "canary-in-the-mine")
    monkeypatch.setenv("SOME_TOKEN", "word")  # too short to be one: every "word" would go
    assert redact({"notes": ["key canary-in-the-mine, a word"]}) == {"notes": [f"key {REDACTED}, a word"]}
