import pytest

from vidlit.runs.rank import rank_from_environment


@pytest.mark.parametrize(
    ("environment", "rank"),
    [({}, 0), ({"LOCAL_RANK": "1"}, 1), ({"RANK": "4", "LOCAL_RANK": "0"}, 4), ({"SLURM_PROCID": "2"}, 2)],
)
def test_the_launchers_variables_tell_the_rank(monkeypatch, environment, rank):
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert rank_from_environment() == rank
