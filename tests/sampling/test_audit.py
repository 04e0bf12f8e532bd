"""Audits of samples in real runs: what they find, cost, leave behind and leave alone."""

import csv
import json

import av
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from vidlit.__main__ import main
from vidlit.callbacks.run_checkpoints import RunCheckpoints
from vidlit.data.batching import Batching
from vidlit.data.datamodule import LatentDataModule
from vidlit.data.split import Splitting
from vidlit.errors import UserError
from vidlit.metrics.sample_distance import coarse, distance
from vidlit.models.features import FeatureExtractor
from vidlit.runs.directory import RunDirectory
from vidlit.runs.loggers.csv_logger import RunCSVLogger
from vidlit.sampling.audit import _prompts
from vidlit.signals.divergence_monitor import DivergenceMonitor
from vidlit.signals.exposure_ledger import ExposureLedger
from vidlit.signals.overfit_stopping import OverfitStopping
from vidlit.signals.sample_videos import SampleVideos
from vidlit.training.module import VideoDiffusionModule

BUCKETS = ["9x64x64", "17x48x80"]
ONE_BUCKET = ["9x48x48"]


@pytest.fixture
def data(demo, latents):
    made = LatentDataModule(
        demo.dir / "clips",
        latents,
        str(demo.dir / "base"),
        BUCKETS,
        batches=Batching(2),
        fps=16,
        split=Splitting(val_fraction=0.5),
    )
    made.encode(accelerator="cpu", devices=1)
    return made


@pytest.fixture
def fit(demo, data, tmp_path):
    """Train the tiny base for a few steps, as `fit` does."""

    def run(
        samples,
        name="run",
        max_steps=8,
        ckpt_path=None,
        policy=None,
        module=None,
        buckets=BUCKETS,
        val_fraction=0.5,
    ):
        module = module or VideoDiffusionModule(str(demo.dir / "base"), fps=16)
        directory = RunDirectory(tmp_path / name)
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=max_steps,
            val_check_interval=2,
            check_val_every_n_epoch=None,
            log_every_n_steps=1,
            use_distributed_sampler=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            default_root_dir=directory.path,
            logger=RunCSVLogger(directory),
            callbacks=[
                DivergenceMonitor(),
                ExposureLedger(),
                OverfitStopping(policy),
                samples,
                *samples.signals(),
                RunCheckpoints(),
            ],
        )
        torch.manual_seed(0)
        datamodule = LatentDataModule(
            data.source,
            data.store.storage.root,
            str(demo.dir / "base"),
            buckets,
            batches=Batching(2),
            fps=16,
            split=Splitting(val_fraction=val_fraction),
        )
        datamodule.encode(accelerator="cpu", devices=1)
        trainer.fit(module, datamodule, ckpt_path=ckpt_path, weights_only=True)
        return module, directory

    return run


def audits(**options):
    return SampleVideos(**{"num_videos": 0, "audit_steps": 2, "num_audit": 6, "every_num_checks": 2, **options})


def decisions(directory, signal):
    """Verdicts of one signal by step."""
    read = [(decision["step"], verdict) for decision in directory.read_decisions() for verdict in decision["verdicts"]]
    return {step: verdict for step, verdict in read if verdict["signal"] == signal}


def column(directory, name):
    with directory.metrics.open(newline="") as file:
        return {int(float(row["step"])): float(row[name]) for row in csv.DictReader(file) if row.get(name)}


def test_audits_are_judged_logged_and_written(fit):
    samples = audits()
    _, directory = fit(samples)
    assert samples.audit.steps == [0, 4, 8]
    for name in ("copies/count", "copies/gap", "copies/ratio_min", "diversity/log_ratio"):
        assert list(column(directory, name)) == [0, 4, 8], name
    assert column(directory, "copies/gap")[0] == 0
    assert all(0 < share < 1 for share in column(directory, "perf/audit_share").values())
    for step in (0, 4, 8):
        files = sorted(path.name for path in directory.samples(step).iterdir())
        assert len(files) == 2 * 6 + 1 + 2  # videos with their JSON, the sheet, a pair
        assert "audit_contact_sheet.png" in files
    copies, diversity = decisions(directory, "copies"), decisions(directory, "diversity")
    assert {step: verdict["evidence"]["step"] for step, verdict in copies.items()} == {2: 0, 4: 4, 6: 4, 8: 8}
    for verdict in copies.values():
        for file in ("sample", "pair", "pair_picture"):
            assert (directory.path / verdict["evidence"][file]).is_file()
        assert verdict["evidence"]["nearest_clip"] in {clip.clip_id for clip in samples.audit.datamodule.train_clips}
    assert diversity[8]["evidence"]["log_ratio"] == pytest.approx(column(directory, "diversity/log_ratio")[8])


def test_prompts_are_half_of_each_side_and_never_change(fit, data):
    samples = audits(num_audit=5)
    fit(samples, max_steps=2)
    train, held_out = ({clip.source.group for clip in clips} for clips in (data.train_clips, data.val_clips))
    groups = [clip.source.group for clip in samples.audit.clips]
    assert [group in train for group in groups] == [True, True, True, False, False]
    assert set(groups[3:]) <= held_out


def test_captions_come_once_before_any_comes_again(data):
    clips = data.train_clips
    captions = {clip.source.caption for clip in clips}
    few = _prompts(clips, 2)
    assert len({clip.source.caption for clip, _ in few}) == 2
    many = _prompts(clips, 2 * len(clips) + 1)
    assert len({clip.source.caption for clip, _ in many[: len(captions)]}) == len(captions)
    assert len({(clip.clip_id, draw) for clip, draw in many}) == len(many)
    assert {draw for _, draw in many} == {0, 1, 2}


@pytest.mark.slow
def test_audits_change_no_weight_and_no_global_generator(fit):
    weights = {}
    for name, samples in (("with", audits(every_num_checks=1)), ("without", audits(num_audit=0))):
        module, _ = fit(samples, name=name, max_steps=4)
        weights[name] = [p.detach().clone() for p in module.parameters()], torch.get_rng_state()
    assert all(torch.equal(*pair) for pair in zip(weights["with"][0], weights["without"][0], strict=True))
    assert torch.equal(weights["with"][1], weights["without"][1])


@pytest.mark.slow
def test_resumed_run_decides_as_the_uninterrupted_one(fit):
    _, whole = fit(audits(), name="whole")
    _, cut = fit(audits(), name="cut", max_steps=6)
    samples = audits()
    fit(samples, name="cut", ckpt_path=cut.last_checkpoint)
    assert samples.audit.steps == [0, 4, 8]
    for signal in ("copies", "diversity"):
        assert decisions(cut, signal) == decisions(whole, signal)


def test_resuming_with_other_clips_is_refused(fit):
    _, directory = fit(audits(), max_steps=4)
    with pytest.raises(UserError, match="audited 6 samples"):
        fit(audits(num_audit=4), ckpt_path=directory.last_checkpoint)
    with pytest.raises(UserError, match="noise"):
        fit(audits(seed=1), ckpt_path=directory.last_checkpoint)
    with pytest.raises(UserError, match="steps"):  # fewer denoising steps come out elsewhere, learned or not
        fit(audits(audit_steps=3), ckpt_path=directory.last_checkpoint)


class Recall(VideoDiffusionModule):
    """After step 2 it knows its training clips by heart: the flow of a training caption ends in a clip of it."""

    def forward(self, noisy, sigmas, conditioning, expert=None):
        velocity = super().forward(noisy, sigmas, conditioning, expert)
        if self.training or self.trainer.sanity_checking or self.trainer.global_step < 3:
            return velocity
        dataset = self.trainer.datamodule.dataset(self.trainer.datamodule.train_clips)
        for row, prompt in enumerate(conditioning.prompt_embeds.float()):
            for sample in map(dataset.__getitem__, range(len(dataset))):
                known = sample.prompt_embeds.float()
                if torch.equal(prompt[: len(known)], known):
                    velocity[row] = (noisy[row] - sample.latents.float()) / sigmas[row]
        return velocity


def test_a_model_that_recalls_its_clips_is_stopped_by_copies(fit, demo):
    policy = {"divergence": "off", "exposure": "off", "diversity": "off"}
    module = Recall(str(demo.dir / "base"), fps=16)
    _, directory = fit(audits(), policy=policy, module=module, max_steps=20, buckets=ONE_BUCKET)
    summary = directory.read_summary()
    assert (summary["stopped_by"], summary["stop_step"]) == ("copies", 4)
    evidence = decisions(directory, "copies")[4]["evidence"]
    assert evidence["copies"] == evidence["clips"] == 3
    assert evidence["gap"] > 0.7
    assert evidence["ratio"] < 1e-3
    assert evidence["nearest_clip"] in summary["reason"]
    assert evidence["sample"] in summary["reason"]
    # Each copy beside what it copies, and both halves show the same.
    assert len(list(directory.samples(4).glob("audit_pair_*.mp4"))) == 3
    with av.open(str(directory.path / evidence["pair"])) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    left, right = np.split(np.stack(frames).astype(int), 2, axis=2)
    assert np.abs(left - right).mean() < 4
    assert left.std() > 10


def test_the_same_run_goes_on_where_copies_may_only_warn(fit, demo):
    policy = {"divergence": "off", "exposure": "off", "diversity": "off", "copies": "warn"}
    module = Recall(str(demo.dir / "base"), fps=16)
    _, directory = fit(audits(), policy=policy, module=module, max_steps=6, buckets=ONE_BUCKET)
    assert directory.read_summary()["stopped_by"] == "max_steps"
    assert decisions(directory, "copies")[6]["action"] == "warn"


class Collapse(VideoDiffusionModule):
    """At step 0 every prompt gives something of its own, after step 2 all give the same."""

    def forward(self, noisy, sigmas, conditioning, expert=None):
        velocity = super().forward(noisy, sigmas, conditioning, expert)
        if self.training:
            return velocity
        apart = self.trainer.sanity_checking or self.trainer.global_step < 3
        # one number a prompt, far apart
        shift = 20 * conditioning.prompt_embeds.float().sum((1, 2)).sin().view(-1, 1, 1, 1, 1) if apart else 0.0
        return (noisy - shift) / sigmas.view(-1, 1, 1, 1, 1)


def test_a_model_whose_samples_grow_alike_is_stopped_by_diversity(fit, demo):
    policy = {"divergence": "off", "exposure": "off", "copies": "off"}
    _, directory = fit(audits(), policy=policy, module=Collapse(str(demo.dir / "base"), fps=16), max_steps=20)
    summary = directory.read_summary()
    assert (summary["stopped_by"], summary["stop_step"]) == ("diversity", 8)
    assert [decisions(directory, "diversity")[step]["action"] for step in (2, 4, 6, 8)] == [
        "continue",
        "warn",
        "warn",
        "stop",
    ]
    assert decisions(directory, "diversity")[8]["evidence"]["log_ratio"] < -1


class Brightness(FeatureExtractor):
    reads = "frames"

    def __call__(self, videos):
        assert videos.shape[1] == 3
        assert videos.abs().max() < 4
        return videos.mean((3, 4)).flatten(1)[:, :9]


def test_another_extractor_sees_decoded_frames(fit):
    samples = audits(features=Brightness(), metrics=["fid"])
    fit(samples, max_steps=4)
    assert samples.audit.steps == [0, 4]
    assert samples.audit._real.features.shape[1] == 9


def test_an_audit_of_one_clip_is_small_but_works(fit):
    samples = audits(num_audit=1)
    fit(samples, max_steps=4)
    assert [len(distances) for distances in samples.audit.distances] == [1, 1]
    assert np.isnan(samples.audit.varieties).all()
    assert "cannot be measured" in samples.audit.diversity().reason


def test_distances_of_sets_are_logged_where_asked_for(fit):
    _, directory = fit(audits(num_audit=4, metrics=["fid", "kid", "mifid"]), max_steps=4)
    for name in ("fid", "kid", "mifid"):
        assert list(column(directory, f"quality/{name}")) == [0, 4], name


def test_a_run_with_nothing_held_out_is_stopped_by_copies(fit, demo):
    policy = {"diversity": "off"}
    module = Recall(str(demo.dir / "base"), fps=16)
    samples = audits()
    _, directory = fit(samples, policy=policy, module=module, max_steps=20, buckets=ONE_BUCKET, val_fraction=0.0)
    assert directory.read_summary()["stopped_by"] == "copies"
    train = {clip.clip_id for clip in samples.audit.datamodule.train_clips}
    assert {clip.clip_id for clip in samples.audit.clips} <= train
    assert "gap" not in decisions(directory, "copies")[4]["evidence"]


def test_without_audits_there_are_no_signals(fit):
    samples = SampleVideos(num_videos=0, num_audit=0)
    assert samples.signals() == []
    _, directory = fit(samples, max_steps=2)
    assert not directory.samples(0).exists()
    assert json.loads(directory.decisions.read_text())["verdicts"][-1]["signal"] == "exposure"


@pytest.mark.slow
def test_interval_is_chosen_once_and_kept_over_a_resume(fit):
    samples = audits(every_num_checks=None, max_share=1e-6)
    _, directory = fit(samples)
    assert samples.audit.steps == [0, 4, 8]  # two audits, whatever they cost
    state = torch.load(directory.last_checkpoint, weights_only=True)["callbacks"]["SampleVideos"]
    assert state["interval"] == 4
    again = audits(every_num_checks=None, max_share=1e-6)
    fit(again, max_steps=16, ckpt_path=directory.last_checkpoint)
    assert again.audit.steps == [0, 4, 8, 12, 16]


def test_audits_are_unguided_and_distilled_models_are_told_their_scale(data, monkeypatch):
    samples = audits(guidance_scale=5.0)
    assert samples.make_audit(data).sampling.guidance_scale == 1.0
    monkeypatch.setattr(data.family, "embeds_guidance", True)
    assert samples.make_audit(data).sampling.guidance_scale == 5.0


def _two_ranks(rank, port, folder, demo, latents):
    import os

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    torch.set_num_threads(1)
    data = LatentDataModule(
        demo / "clips",
        latents,
        str(demo / "base"),
        BUCKETS,
        batches=Batching(2),
        fps=16,
        split=Splitting(val_fraction=0.5),
    )
    samples = audits(num_audit=7)
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_steps=2,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        default_root_dir=folder / "two",
        logger=False,
        callbacks=[DivergenceMonitor(), ExposureLedger(), samples],
    )
    trainer.fit(VideoDiffusionModule(str(demo / "base"), fps=16), data)
    audit = samples.audit
    torch.save(
        {"distances": audit.distances, "nearest": audit.nearest, "varieties": audit.varieties}, folder / f"{rank}.pt"
    )


@pytest.mark.slow
def test_two_ranks_find_what_one_finds(fit, data, demo, tmp_path):
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    one = audits(num_audit=7)
    _, directory = fit(one, max_steps=2)
    torch.multiprocessing.start_processes(
        _two_ranks, (port, tmp_path, demo.dir, data.store.storage.root), nprocs=2, start_method="fork"
    )
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first["nearest"] == second["nearest"]
    assert first["varieties"] == second["varieties"]
    for mine, other in zip(first["distances"], second["distances"], strict=True):
        assert torch.equal(mine, other)
    # step 0, where the weights are still the same
    torch.testing.assert_close(first["distances"][0], one.audit.distances[0], rtol=1e-3, atol=1e-4)
    assert first["varieties"][0] == pytest.approx(one.audit.varieties[0], abs=1e-3)
    written = RunDirectory(tmp_path / "two").samples(0)
    assert sorted(p.name for p in written.iterdir()) == sorted(p.name for p in directory.samples(0).iterdir())


def test_clips_that_share_a_caption_are_all_what_its_prompts_ask_for(data):
    audit = audits().make_audit(data)
    for row, clip in enumerate(audit.clips):
        own = [audit.own_clips[number] for number in audit.own[row]]
        assert own[0] == clip
        side = data.train_clips if audit.trained[row] else data.val_clips
        alike = [one for one in side if (one.source.caption, one.bucket) == (clip.source.caption, clip.bucket)]
        assert {one.clip_id for one in own} == {one.clip_id for one in alike}


def test_of_many_clips_under_one_caption_some_are_looked_at(data, monkeypatch):
    monkeypatch.setattr("vidlit.sampling.audit.MAX_OWN_CLIPS", 2)
    assert {len(own) for own in audits().make_audit(data).own} == {1}


def test_with_few_held_out_recordings_training_prompts_tell_diversity_too(data):
    audit = audits(num_audit=8).make_audit(data)
    assert len({clip.source.group for clip in data.val_clips}) < 4
    assert audit.telling == list(range(8))
    many = audits(num_audit=8).make_audit(data, held_out=data.train_clips + data.val_clips)
    assert many.telling == [4, 5, 6, 7]


def test_distances_are_to_the_prompts_own_clips(fit, data):
    samples = audits()
    _, directory = fit(samples, max_steps=2)
    audit = samples.audit
    vae = data.family.load_vae("cpu")
    real = [
        coarse(data.family.decode_latents(vae, data.dataset([clip])[0].latents[None].float()).clamp(-1, 1))
        for clip in audit.own_clips
    ]
    for row in range(len(audit.clips)):
        (path,) = directory.samples(0).glob(f"audit_{row:02d}*.mp4")
        with av.open(str(path)) as container:
            made = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        video = coarse(torch.from_numpy(made).permute(3, 0, 1, 2)[None].float() / 127.5 - 1)
        expected = min(float(distance(video, real[number])) for number in audit.own[row])
        # what was written is clamped and compressed
        assert float(audit.distances[0][row]) == pytest.approx(expected, rel=0.15)


def test_a_vision_model_is_named_in_a_config_and_compares(quickstart, tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Dinov2Model(config).save_pretrained(tmp_path / "dinov2")
    (tmp_path / "features.yaml").write_text(
        "samples:\n  num_audit: 4\n  audit_steps: 2\n  features:\n"
        f"    class_path: vidlit.models.features.VisionFeatures\n    init_args: {{model: {tmp_path / 'dinov2'}}}\n"
    )
    command, *words = quickstart(trainer__max_steps=4)
    words = [word for word in words if not word.startswith("--samples.num_audit")]
    assert main([command, *words, "--config", str(tmp_path / "features.yaml")]) == 0
    directory = RunDirectory(tmp_path / "runs" / "quickstart" / "0")
    assert list(column(directory, "copies/ratio_min")) == [0, 4]
    assert (directory.path / decisions(directory, "copies")[4]["evidence"]["pair"]).is_file()
