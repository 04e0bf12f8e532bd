import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidlit.data.identity import TABLE, ClipIdentity, DataIdentity, check_clips
from vidlit.errors import UserError

WORDS = st.text(st.characters(codec="utf-8"), max_size=6)
CLIPS = st.builds(ClipIdentity, st.sampled_from(["train", "val", "test"]), WORDS, WORDS, WORDS)
DATA = st.dictionaries(WORDS, CLIPS, max_size=6).map(DataIdentity)


def small(**changed):
    clips = {
        "a.mp4@0-1": ClipIdentity("train", "film a", "one", "p"),
        "b.mp4@0-1": ClipIdentity("train", "film b", "two", "p"),
        "c.mp4@0-1": ClipIdentity("val", "film c", "three", "p"),
        "d.mp4@0-1": ClipIdentity("test", "film d", "four", "p"),
    }
    return DataIdentity({name: clip for name, clip in {**clips, **changed}.items() if clip is not None})


def other(name, **fields):
    return small(**{name: small().clips[name]._replace(**fields)})


@settings(deadline=None)
@given(DATA, DATA)
def test_two_runs_have_the_same_clips_exactly_where_nothing_differs(here, there):
    same = here.clips == there.clips
    assert (here.digests == there.digests) == same
    assert (here.differences(there) == []) == same
    assert here.differences(here) == []
    without_sides = [{n: c._replace(side="") for n, c in each.clips.items()} for each in (here, there)]
    assert (here.differences(there, sides=False) == []) == (without_sides[0] == without_sides[1])


@settings(deadline=None)
@given(DATA)
def test_a_table_tells_everything_that_was_written(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("run") / TABLE
    path.write_bytes(data.as_table().encode())
    assert DataIdentity.read(path) == data


def test_the_table_is_for_people_too():
    rows = list(csv.DictReader(io.StringIO(small().as_table())))
    assert rows[0] == {"clip_id": "a.mp4@0-1", "side": "train", "content": "film a", "caption": "one", "prepared": "p"}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (small(**{"a.mp4@0-1": None}), "1 clip is gone (a.mp4@0-1)"),
        (small(**{"e.mp4@0-1": ClipIdentity("train", "film e", "five", "p")}), "1 clip is new (e.mp4@0-1)"),
        (other("c.mp4@0-1", content="film x"), "1 clip is of another file (c.mp4@0-1)"),
        (other("b.mp4@0-1", caption="zwei"), "1 clip is of another caption (b.mp4@0-1)"),
        (other("b.mp4@0-1", side="val"), "1 clip is on another side of the split (b.mp4@0-1)"),
        (other("d.mp4@0-1", prepared="q"), "1 clip is prepared otherwise (d.mp4@0-1)"),
    ],
)
def test_a_run_that_goes_on_with_other_clips_is_told_which(tmp_path, changed, told):
    path = tmp_path / TABLE
    path.write_text(small().as_table())
    with pytest.raises(UserError) as error:
        check_clips(changed, small().digests, "fit", path)
    assert told in str(error.value)
    with pytest.raises(UserError, match=r"clips \(which, only a clips\.csv"):
        check_clips(changed, small().digests, "fit", tmp_path / "nowhere")
    check_clips(small(), small().digests, "fit", path)


def test_many_clips_are_counted_and_few_named(tmp_path):
    many = DataIdentity({f"{n}.mp4": ClipIdentity("train", "film", "words", "p") for n in range(1000)})
    (told,) = DataIdentity({}).differences(many)
    assert told == "1000 clips are gone (0.mp4, 1.mp4, 2.mp4 and 997 more)"


def test_validation_asks_for_its_own_clips_only(tmp_path):
    path = tmp_path / TABLE
    path.write_text(small().as_table())
    check_clips(other("a.mp4@0-1", caption="new"), small().digests, "validate", path)
    with pytest.raises(UserError, match="of another file"):
        check_clips(other("c.mp4@0-1", content="film x"), small().digests, "validate", path)


@pytest.mark.parametrize(("content", "refused"), [("film a", True), ("film c", True), ("film z", False)])
def test_a_test_sees_nothing_that_the_run_has_seen(tmp_path, content, refused):
    """The run held nothing out for a test: any clips will do, but those of files it was trained, or stopped, by."""
    there = small(**{"d.mp4@0-1": None})
    path = tmp_path / TABLE
    path.write_text(there.as_table())
    here = DataIdentity({"x.mp4@0-1": ClipIdentity("test", content, "words", "p")})
    if refused:
        with pytest.raises(UserError, match="says nothing about new videos"):
            check_clips(here, there.digests, "test", path)
    else:
        check_clips(here, there.digests, "test", path)


def test_checkpoints_of_earlier_versions_and_commands_without_clips_are_let_be(tmp_path):
    check_clips(small(), None, "fit", tmp_path / TABLE)
    check_clips(DataIdentity({}), small().digests, "predict", tmp_path / TABLE)
