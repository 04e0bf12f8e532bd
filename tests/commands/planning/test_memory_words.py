"""What a plan says of memory, of forecasts that are given."""

from dataclasses import replace

import pytest
from rich.console import Console

from vidlit.commands.planning.memory_words import MemoryPlan, print_memory, write_fitted
from vidlit.forecast.card import needs, parse_memory
from vidlit.forecast.memory_forecast import CAPTIONS, CLIPS, PHASES, MemoryForecast, Phase
from vidlit.forecast.remedies import LOWERED
from vidlit.forecast.tensor_memory import FROZEN, Held


def plan_of(*, changes=None, costs=None, fitted=None, **gigabytes):
    """For a card of 24 GB: 10 GB in every phase but those that are named."""
    sizes = {name: gigabytes.get(name.split()[-1], 10.0) for name in PHASES}
    phases = [Phase(name, Held({FROZEN: 1e9 * size})) for name, size in sizes.items()]
    forecast = MemoryForecast(phases, 0.0, "9x64x64", 1)
    return MemoryPlan(forecast, parse_memory("24GB"), {}, changes or {}, costs or {}, {}, fitted, needs(10e9))


def printed(plan):
    console = Console(width=500)
    with console.capture() as shown:
        print_memory(plan, console)
    return shown.get()


def test_captions_that_do_not_fit_are_encoded_elsewhere(tmp_path):
    plan = plan_of(captions=30.0, fitted={})
    assert "It does not fit a card of 24 GB (25.5 GB): 6.9 GB" in printed(plan)
    assert "Captions do not fit with any option: run `vidlit encode`" in printed(plan)
    assert plan.as_dict()["captions_fit"] is False
    assert "no option is needed, or would help" in write_fitted(plan, tmp_path / "fit.yaml")
    assert list(tmp_path.iterdir()) == []
    assert "Captions" not in printed(plan_of(clips=30.0))
    assert {*PHASES} - {*LOWERED} == {CAPTIONS}


def test_a_change_is_shown_with_its_cost():
    changes = {"--model.memory.gradient_checkpointing true": 20e9, f"--of {CLIPS}": 30e9}
    shown = printed(plan_of(train=30.0, changes=changes, costs={next(iter(changes)): "up to 33 % more time"}))
    assert "--model.memory.gradient_checkpointing true: 20.0 GB (fits); cost: up to 33 % more time" in shown
    assert f"--of {CLIPS}: 30.0 GB\n" in shown


@pytest.mark.parametrize(("needed", "said"), [(20e9, "with which it fits"), (30e9, "take least, 30.0 GB, too much")])
def test_options_that_were_found_are_written(needed, said, tmp_path):
    plan = replace(plan_of(fitted={"data.batches.size": 1, "data.batches.workers": 2}), fitted_needs=needed)
    assert said in write_fitted(plan, tmp_path / "fit.yaml")
    assert "data:\n  batches:\n    size: 1\n    workers: 2\n" in (tmp_path / "fit.yaml").read_text()
