import json
from dataclasses import asdict

import pytest

from vidlit.stopping.verdict import Policy, Verdict


def verdict(signal, action):
    return Verdict(signal, action, f"{signal} says {action}.", {"number": 1.0})


def test_the_strongest_action_decides_and_names_its_signals():
    decision = Policy().join(
        [
            verdict("divergence", "warn"),
            verdict("copies", "stop"),
            verdict("exposure", "stop"),
            verdict("diversity", "continue"),
        ]
    )
    assert decision.action == "stop"
    assert decision.signals == ("copies", "exposure")
    assert decision.reason == "copies says stop. exposure says stop."
    assert len(decision.verdicts) == 4


def test_a_signal_set_to_warn_cannot_stop():
    decision = Policy(copies="warn").join([verdict("copies", "stop"), verdict("divergence", "continue")])
    assert (decision.action, decision.signals) == ("warn", ("copies",))
    assert decision.verdicts[0].action == "warn"


def test_a_signal_that_is_off_is_not_heard():
    decision = Policy(divergence="off").join([verdict("divergence", "stop")])
    assert (decision.action, decision.signals, decision.reason, decision.verdicts) == ("continue", (), "", ())


def test_nothing_to_report_continues_and_still_says_what_was_seen():
    decision = Policy().join([verdict("divergence", "continue")])
    assert (decision.action, decision.signals, decision.reason) == ("continue", (), "divergence says continue.")


def test_decisions_can_be_written_as_json():
    decision = Policy().join([verdict("divergence", "stop")])
    assert json.loads(json.dumps(asdict(decision)))["verdicts"][0]["evidence"] == {"number": 1.0}


def test_a_wrong_mode_and_an_unknown_signal_are_refused():
    with pytest.raises(ValueError, match="copies: 'never'"):
        Policy(copies="never")
    with pytest.raises(ValueError, match="no mode for signal 'loss'"):
        Policy().join([verdict("loss", "stop")])
