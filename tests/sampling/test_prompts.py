"""Which prompts words and files hold."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidlit.errors import UserError
from vidlit.sampling.prompts import read_prompts
from vidlit.sampling.rendering import sample_name
from vidlit.video.buckets import Bucket

SIZE = Bucket(5, 48, 80)


def texts(*sources):
    return [prompt.text for prompt in read_prompts([str(source) for source in sources], 0, SIZE)]


@pytest.mark.parametrize("name", ["p.jsonl", "p.JSON", "folder/p.tsv", "p.parquet", "p.yaml", "p.xlsx"])
def test_a_name_of_a_file_is_no_prompt(name):
    with pytest.raises(UserError, match="kind that is not read"):
        texts(name)


@pytest.mark.parametrize("name", ["p.prompts", "prompts", "my prompts.json"])
def test_a_file_that_is_there_is_no_prompt(tmp_path, name):
    (tmp_path / name).write_text("A red disc\n")
    with pytest.raises(UserError, match="kind that is not read"):
        texts(tmp_path / name)


@pytest.mark.parametrize(
    "prompt", ["A red disc.", "A screen that shows config.json", "v1.5", "a disc/ring", "A disc. " * 100, "red\0disc"]
)
def test_words_are_prompts(prompt):
    assert texts(prompt) == [prompt.strip()]


def test_what_cannot_be_encoded_is_refused():
    with pytest.raises(UserError, match=r"A \\xe9 is not UTF-8"):
        texts("A \udce9")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.sampled_from("ab \u2028\x0b\x0c\x1c\x1d\x1e\x85,;\"'"), min_size=1), min_size=1, max_size=4))
def test_a_line_is_what_lies_between_newlines(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("prompts") / "p.txt"
    lines = [f"{line}x" for line in lines]
    path.write_text("\n".join(["", *lines, ""]), "utf-8")
    assert texts(path) == [line.strip() for line in lines]


def test_a_prompt_in_a_table_may_have_several_lines(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text('prompt;seed\n"A disc\nand a ring";3\nA\u2028ring, red;\n', "utf-16")
    assert texts(path) == ["A disc\nand a ring", "A\u2028ring, red"]
    path.write_text('prompt\n"A disc\nA ring\n')
    with pytest.raises(UserError, match=r"p\.csv line 2: the row opens a quote that is not closed"):
        texts(path)


@pytest.mark.parametrize(
    ("caption", "name"),
    [
        ("A red disc: it moves", "07_a_red_disc_it_moves.mp4"),
        ("一只猫\uff0c跳上窗台。", "07_一只猫_跳上窗台.mp4"),
        ("Ein Ba\u0308r", "07_ein_b\u00e4r.mp4"),
        ("नीली गेंद", "07_नीली_गेंद.mp4"),
        ("../../etc: <a>|b? \\ \0", "07_etc_a_b.mp4"),
        ("🙂", "07.mp4"),
        ("", "07.mp4"),
    ],
)
def test_names_of_videos_keep_letters_of_every_script(caption, name):
    assert sample_name(7, caption) == name


@given(st.text(), st.sampled_from(["", "audit_"]))
def test_names_of_videos_are_names_on_every_system(caption, prefix):
    name = sample_name(7, caption, prefix)
    assert name.startswith(f"{prefix}07")
    assert len(name.encode()) < 200
    assert not set(name) & set('<>:"/\\|?* \0\n')
