import json
from dataclasses import asdict

import pytest

from vidlit.stopping.verdict import Verdict, join_parts, join_verdicts

STOP = dict.fromkeys(("divergence", "copies", "exposure", "diversity"), "stop")


def verdict(signal, action):
    return Verdict(signal, action, f"{signal} says {action}.", {"number": 1.0})


def test_the_strongest_action_decides_and_names_its_signals():
    decision = join_verdicts(
        [
            verdict("divergence", "warn"),
            verdict("copies", "stop"),
            verdict("exposure", "stop"),
            verdict("diversity", "continue"),
        ],
        STOP,
    )
    assert decision.action == "stop"
    assert decision.signals == ("copies", "exposure")
    assert decision.reason == "copies says stop. exposure says stop."
    assert len(decision.verdicts) == 4


def test_a_signal_set_to_warn_cannot_stop():
    decision = join_verdicts([verdict("copies", "stop"), verdict("divergence", "continue")], {**STOP, "copies": "warn"})
    assert (decision.action, decision.signals) == ("warn", ("copies",))
    assert decision.verdicts[0].action == "warn"


def test_a_signal_that_is_off_is_not_heard():
    decision = join_verdicts([verdict("divergence", "stop")], {**STOP, "divergence": "off"})
    assert (decision.action, decision.signals, decision.reason, decision.verdicts) == ("continue", (), "", ())


def test_nothing_to_report_continues_and_still_says_what_was_seen():
    decision = join_verdicts([verdict("divergence", "continue")], STOP)
    assert (decision.action, decision.signals, decision.reason) == ("continue", (), "divergence says continue.")


def test_decisions_can_be_written_as_json():
    decision = join_verdicts([verdict("divergence", "stop")], STOP)
    assert json.loads(json.dumps(asdict(decision)))["verdicts"][0]["evidence"] == {"number": 1.0}


def test_a_signal_without_a_mode_is_refused():
    with pytest.raises(ValueError, match="no mode for signal 'loss'"):
        join_verdicts([verdict("loss", "stop")], STOP)


def test_no_mode_but_off_makes_less_of_a_run_that_has_broken_down():
    broken = Verdict("divergence", "stop", "The loss is no longer a finite number.", fatal=True)
    assert join_verdicts([broken], {"divergence": "warn"}).action == "stop"
    assert join_verdicts([broken], {"divergence": "off"}).action == "continue"


def test_a_run_of_one_part_has_its_verdict():
    alone = verdict("divergence", "warn")
    assert join_parts({"all": alone}) is alone


def test_parts_are_done_one_by_one():
    parts = {"high": verdict("divergence", "stop"), "low": verdict("divergence", "continue")}
    last, first = join_parts(parts), join_parts(parts, stop_at="first")
    assert (last.action, first.action) == ("warn", "stop")
    assert last.reason == first.reason == "high: divergence says stop."
    assert last.evidence == {"high/number": 1.0, "low/number": 1.0}
    both = join_parts(dict.fromkeys(("high", "low"), verdict("divergence", "stop")))
    assert both.action == "stop"
    assert "high: divergence says stop. low:" in both.reason


def test_one_broken_part_ends_the_run():
    broken = Verdict("divergence", "stop", "Broken.", fatal=True)
    joined = join_parts({"video": verdict("divergence", "continue"), "sound": broken})
    assert (joined.action, joined.fatal, joined.reason) == ("stop", True, "sound: Broken.")
    with pytest.raises(ValueError, match="one part"):
        join_parts({})
