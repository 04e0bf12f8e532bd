"""How often clips were trained on, written and read: a few as CSV, very many as parquet."""

import pyarrow.parquet as pq
import pytest

from tests.data.stand_ins import make_clips
from vidlit.data import exposure_table
from vidlit.data.exposure_table import Exposure, read_exposures, write_exposures
from vidlit.data.split import Split


@pytest.mark.parametrize("most", [6, 5])
def test_what_is_written_is_read(tmp_path, monkeypatch, most):
    monkeypatch.setattr(exposure_table, "MOST_IN_CSV", most)
    clips = make_clips(6)
    written = write_exposures(tmp_path / "exposure.csv", Split(clips[:3], clips[3:5], clips[5:]), [4, 0, 7])
    assert written.name == ("exposure.csv" if most == 6 else "exposure.parquet")
    assert [path.name for path in tmp_path.iterdir()] == [written.name]
    rows = read_exposures(tmp_path / "exposure.csv")
    assert [row.exposures for row in rows] == [4, 0, 7, 0, 0, 0]
    assert [row.split for row in rows] == ["train"] * 3 + ["val"] * 2 + ["test"]
    assert rows[0] == Exposure("00000.mp4@0.000", "00000.mp4", "train", 4)
    if most == 5:
        assert pq.read_table(written).num_rows == 6


def test_nothing_written_is_nothing_read(tmp_path):
    assert read_exposures(tmp_path / "exposure.csv") == []


def test_another_table_is_an_error_that_reports_know(tmp_path):
    (tmp_path / "exposure.csv").write_text("a,b\n1,2\n")
    with pytest.raises(KeyError):
        read_exposures(tmp_path / "exposure.csv")
