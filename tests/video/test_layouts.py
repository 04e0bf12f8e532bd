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
def clips(tmp_path):
    """Two folders of videos, an image and captions, none of which is opened."""
    made = tmp_path / "data"
    for name in ("one/a.mp4", "one/b.mp4", "one/deep/c.mp4", "one/d.png", "two/e_f.mp4"):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(b"not opened")
    for name in ("one/a", "one/deep/c", "one/d", "two/e_f"):
        (made / f"{name}.txt").write_text(f"caption of {name}\n\nanother one\n")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x.mp4").write_bytes(b"not opened")
    (tmp_path / "outside" / "x.txt").write_text("secret")
    return made


def captions(sources):
    return {video.video: video.caption for video in sources.videos}


def reasons(sources):
    return {bad.video: bad.reason for bad in sources.quarantined}


@pytest.fixture
def own(tmp_path):
    """The layout of docs/extending/layout.md."""
    with module_of("extending/layout.md", "captions_by_path.py", tmp_path) as module:
        yield module


def test_every_layout_is_asked_once_and_says_what_it_reads():
    names = [layout.__name__ for layout in known_layouts()]
    assert names == [
        "MusubiTuner",
        "DiffusionPipe",
        "SimpleTuner",
        "Table",
        "Metadata",
        "TrainFolder",
        "PromptsAndVideos",
        "AnyTable",
        "CaptionFiles",
    ]
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


def test_the_table_in_train_is_read_and_other_splits_are_left_out(clips):
    (clips / "one").rename(clips / "train")
    (clips / "two").rename(clips / "test")
    (clips / "train" / "metadata.csv").write_text(
        "file_name,caption\na.mp4,A boat.\ndeep/c.mp4,A bear.\n../a.mp4,Out.\n"
    )
    (clips / "test" / "metadata.jsonl").write_text('{"file_name": "e_f.mp4", "caption": "A test."}\n')
    sources = read_sources(clips)
    assert sources.layout == "train/metadata.csv"
    assert captions(sources) == {"train/a.mp4": "A boat.", "train/deep/c.mp4": "A bear."}
    assert ["'..'" in reason for reason in reasons(sources).values()] == [True]
    assert sources.notes == ("only train/ is read; test/ left out",)
    assert sources.unlisted == ("test/e_f.mp4", "train/b.mp4", "train/d.png")


MUSUBI = """
[general]
resolution = [960, 544]
caption_extension = ".txt"
batch_size = 1
[[datasets]]
video_directory = "one"
target_frames = [1, 25]
num_repeats = 5
[[datasets]]
video_directory = "./one"
target_frames = [45]
[[datasets]]
image_directory = "DATA/one"
cache_directory = "/tmp/cache"
[[datasets]]
video_jsonl_file = "two/rows.jsonl"
[[datasets]]
video_directory = "../outside"
[[datasets]]
video_directory = "none"
[[datasets]]
num_repeats = 2
"""


def test_the_config_of_musubi_tuner(clips):
    (clips / "dataset.toml").write_text(MUSUBI.replace("DATA", str(clips)))
    rows = [{"video_path": "e_f.mp4", "caption": "From a table."}, {"video_path": "/etc/passwd", "caption": "Out."}]
    (clips / "two" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = read_sources(clips / "dataset.toml")
    assert captions(sources) == {
        "one/a.mp4": "caption of one/a\n\nanother one",
        "one/d.png": "caption of one/d\n\nanother one",
        "two/e_f.mp4": "From a table.",
    }
    told = reasons(sources)
    assert "no caption file b.txt" in told["one/b.mp4"]
    assert "leads out of its folder" in told["dataset.toml [[datasets]] 5"]
    assert "is no folder" in told["dataset.toml [[datasets]] 6"]
    assert "names neither" in told["dataset.toml [[datasets]] 7"]
    assert "absolute path" in told["/etc/passwd"]
    same, unused = sources.notes
    assert same.startswith("dataset.toml [[datasets]] 2 names what an entry before it names")
    assert "resolution = [960, 544], target_frames = [1, 25], num_repeats = 5, batch_size, cache_directory" in unused
    assert sources.unlisted == ("one/deep/c.mp4",)


def test_the_config_of_diffusion_pipe(clips):
    (clips / "dataset.toml").write_text(
        "resolutions = [512]\nframe_buckets = [1, 33]\nenable_ar_bucket = true\n"
        "[[directory]]\npath = 'one'\nnum_repeats = 3\ncaption_prefix = 'A film of '\n[[directory]]\npath = 'two'\n"
    )
    (clips / "two" / "captions.json").write_text(json.dumps({"e_f.mp4": ["first", "second"]}))
    sources = read_sources(clips / "dataset.toml")
    assert captions(sources) == {
        "one/a.mp4": "A film of caption of one/a\n\nanother one",
        "one/d.png": "A film of caption of one/d\n\nanother one",
        "two/e_f.mp4": "first",
    }
    assert sources.further_captions == {"two/e_f.mp4": 1}
    (note,) = sources.notes
    assert "resolutions = [512], frame_buckets = [1, 33], num_repeats = 3, enable_ar_bucket" in note


def test_the_config_of_simple_tuner(clips):
    local = {"type": "local", "crop": True, "resolution": 480, "repeats": 2}
    config = [
        {"id": "a", "instance_data_dir": "one", "caption_strategy": "textfile", **local},
        {"id": "b", "instance_data_dir": "two", "caption_strategy": "filename", **local}
        | {"prepend_instance_prompt": True, "instance_prompt": "sks"},
        {"id": "c", "instance_data_dir": "two", "caption_strategy": "parquet", **local},
        {"id": "d", "instance_data_dir": "two", "disabled": True, **local},
        {"id": "e", "dataset_type": "text_embeds", "type": "local", "cache_dir": "cache"},
        {"id": "f", "type": "aws", "instance_data_dir": "two", "aws_secret_access_key": "hush"},
        {"id": "g", "instance_data_dir": "two", "only_instance_prompt": True, "instance_prompt": "sks style", **local},
    ]
    (clips / "multidatabackend.json").write_text(json.dumps(config))
    sources = read_sources(clips / "multidatabackend.json")
    assert [(video.video, video.caption) for video in sources.videos] == [
        ("one/a.mp4", "caption of one/a"),
        ("one/d.png", "caption of one/d"),
        ("one/deep/c.mp4", "caption of one/deep/c"),
        ("two/e_f.mp4", "sks e f"),
        ("two/e_f.mp4", "sks style"),
    ]
    assert set(sources.further_captions.values()) == {1}
    told = reasons(sources)
    assert "caption_strategy 'parquet'" in told["multidatabackend.json entry 3"]
    assert "only local folders" in told["multidatabackend.json entry 6"]
    disabled, embeds, unused = sources.notes
    assert "entry 4 is disabled" in disabled
    assert "entry 5 is of type text_embeds" in embeds
    assert "resolution = 480, repeats = 2, crop" in unused
    assert "hush" not in str(sources)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("dataset.toml", "[general", "not valid TOML"),
        ("dataset.toml", "[training]\nsteps = 1\n", "no table; accepted layouts"),
        ("dataset.toml", "[[datasets]]\nvideo_directory = 3\n", "no usable video"),
        ("dataset.toml", "datasets = [1]\n", "not a table of options"),
        ("dataset.toml", "[[directory]]\npath = 'one\\u0000'\n", "no usable video"),
        ("backend.json", '[{"instance_data_dir": null}, 3]', "no usable video"),
        ("backend.json", '[{"instance_data_dir": "one", "caption_strategy": ["a"]}]', "caption_strategy"),
        ("backend.json", '[{"instance_data_dir": "one", "prepend_instance_prompt": true}]', "which is no text"),
        ("backend.json", '[{"instance_data_dir": "one", "dataset_type": "eval"}]', "it lists none"),
    ],
)
def test_configs_that_say_nothing_are_one_clear_line(clips, name, text, reason):
    (clips / name).write_text(text)
    with pytest.raises(UserError, match=reason) as caught:
        read_sources(clips / name)
    assert "accepted layouts" in str(caught.value) or "\n" not in str(caught.value)
