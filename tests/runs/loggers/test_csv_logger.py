import csv

from vidlit.runs.directory import RunDirectory
from vidlit.runs.loggers.csv_logger import RunCSVLogger


def rows(directory):
    """Logged values by step; one step may take several rows, one for each call."""
    found = {}
    with directory.metrics.open(newline="") as file:
        for row in csv.DictReader(file):
            values = {name: value for name, value in row.items() if value}
            step = int(values.pop("step"))
            assert not values.keys() & found.get(step, {}).keys(), f"step {step} twice"
            found.setdefault(step, {}).update(values)
    assert list(found) == sorted(found)
    return found


def log(logger, steps):
    for step in steps:
        logger.log_metrics({"train/loss": 1 / (step + 1)}, step=step)
        if step % 4 == 0:
            logger.log_metrics({"val/loss": float(step)}, step=step)
    logger.save()


def test_numbers_lie_in_metrics_csv_of_the_run(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    log(RunCSVLogger(directory), range(3))
    assert [path.name for path in directory.path.iterdir()] == ["metrics.csv"]
    assert rows(directory) == {
        0: {"train/loss": "1.0", "val/loss": "0.0"},
        1: {"train/loss": "0.5"},
        2: {"train/loss": str(1 / 3)},
    }


def test_a_resumed_run_reads_as_if_never_interrupted(tmp_path):
    whole = RunDirectory(tmp_path / "whole")
    log(RunCSVLogger(whole), range(12))

    cut = RunDirectory(tmp_path / "cut")
    log(RunCSVLogger(cut), range(10))  # killed two steps after the checkpoint of step 7
    logger = RunCSVLogger(cut)
    logger.log_hyperparams({"rate": 1.0})
    logger.save()  # as the Trainer does before training starts
    logger.rewind(7)
    assert list(rows(cut)) == list(range(8))  # on disk at once
    log(logger, range(8, 12))
    assert rows(cut) == rows(whole)
    assert cut.metrics.read_text() == whole.metrics.read_text()


def test_new_columns_after_a_resume_do_not_lose_old_rows(tmp_path):
    directory = RunDirectory(tmp_path)
    log(RunCSVLogger(directory), range(2))
    logger = RunCSVLogger(directory)
    logger.rewind(1)
    logger.log_metrics({"exposure/mean": 3.0}, step=2)
    logger.save()
    assert list(rows(directory)) == [0, 1, 2]
    assert rows(directory)[0]["train/loss"] == "1.0"
    assert rows(directory)[2] == {"exposure/mean": "3.0"}


def test_starting_anew_in_a_folder_forgets_what_lay_there(tmp_path):
    directory = RunDirectory(tmp_path)
    log(RunCSVLogger(directory), range(9))
    logger = RunCSVLogger(directory)
    logger.rewind(-1)
    log(logger, range(2))
    assert list(rows(directory)) == [0, 1]


def test_a_run_that_is_resumed_when_it_is_over_keeps_its_rows(tmp_path):
    """Nothing is trained then, so nothing is rewound; the whole history was once lost."""
    directory = RunDirectory(tmp_path)
    log(RunCSVLogger(directory), range(9))
    logger = RunCSVLogger(directory)
    logger.log_metrics({"test/loss": 1.0}, step=9)
    logger.finalize("success")
    assert list(rows(directory)) == list(range(10))
