"""`vidlit export --merge`: from a run to a model that another run starts from."""

import pytest

from vidlit.__main__ import main


def test_the_lora_of_a_run_becomes_a_base_that_trains_on(quickstart, tmp_path, capsys):
    assert main(quickstart(model__adapter__rank=4, trainer__max_steps=2)) == 0
    run, merged = tmp_path / "runs/quickstart/0", tmp_path / "merged"
    assert main(["export", str(run), "--merge", "--output", str(merged)]) == 0
    assert f"{run / 'weights/pytorch_lora_weights.safetensors'} in its weights: {merged}" in capsys.readouterr().out
    assert main(quickstart(model__base=merged, run__name="again", trainer__max_steps=2)) == 0
    assert (tmp_path / "runs/again/0/weights/transformer").is_dir()

    assert main(["export", str(tmp_path / "runs/again/0"), "--merge", "--output", str(tmp_path / "no")]) == 2
    assert "is a whole model already: all weights were trained" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lora.safetensors", "--output=new"], "say --merge"),
        (["lora.safetensors", "--merge", "--output=new"], "give --base"),
        (["gone.safetensors", "--merge", "--output=new", "--base=any"], "no LoRA"),
        (["lora.bin", "--merge", "--output=new", "--base=any"], "only safetensors"),
        (["lora.safetensors", "--merge", "--output=full", "--base=any"], "give a new folder"),
        (["lora.safetensors", "--merge", "--output=new", "--base=any"], "Base model folder any does not exist"),
        (["lora.safetensors", "--merge"], "--output"),
    ],
)
def test_what_cannot_be_merged_is_one_line(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("lora.safetensors", "lora.bin", "full/file"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert main(["export", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
