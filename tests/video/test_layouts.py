"""The order in which layouts are asked, and one of the user's own; what each reads is in test_sources."""

import json

import pytest

from tests.pages import module_of
from vidlit.errors import UserError
from vidlit.video.layouts import Layout, known_layouts
from vidlit.video.sources import read_sources


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "clips"
    made.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (made / name).write_bytes(b"not opened")
    return made


@pytest.fixture
def own(tmp_path):
    """The layout of docs/extending/layout.md."""
    with module_of("extending/layout.md", "captions_by_path.py", tmp_path) as module:
        yield module


def test_every_layout_is_asked_once_and_says_what_it_reads():
    names = [layout.__name__ for layout in known_layouts()]
    assert names == ["Table", "Metadata", "PromptsAndVideos", "AnyTable", "CaptionFiles"]
    assert all(layout.description for layout in known_layouts())


def test_the_page_adds_a_layout_that_is_asked_first(folder, own):
    (folder / "captions.json").write_text(json.dumps({"a.mp4": "Waves.", "b.mp4": "Rain.", "../c.mp4": "Out."}))
    (folder / "metadata.csv").write_text("file_name,caption\na.mp4,Another one.\n")
    sources = read_sources(folder)
    assert sources.layout == "captions.json"
    assert [(video.video, video.caption) for video in sources.videos] == [("a.mp4", "Waves."), ("b.mp4", "Rain.")]
    assert ["'..'" in bad.reason for bad in sources.quarantined] == [True]
    (folder / "captions.json").write_text("{")
    with pytest.raises(UserError, match=r"captions\.json is not valid JSON"):
        read_sources(folder)
    (folder / "captions.json").unlink()
    assert read_sources(folder).layout == "metadata.csv"


def test_a_folder_that_no_layout_fits_is_told_all_of_them(folder, own, tmp_path):
    (tmp_path / "notes.txt").write_text("no table")
    for source in (folder, tmp_path / "notes.txt"):
        with pytest.raises(UserError) as caught:
            read_sources(source)
        for layout in known_layouts():
            assert layout.description.split("\n")[0] in str(caught.value)


def test_nothing_of_the_page_stays():
    assert all(layout.__module__.startswith("vidlit.") for layout in Layout.__subclasses__())
