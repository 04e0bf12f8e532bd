"""Every metric that a run logs, one row each: its name in files, its words for users, and how it is shown.

The report, the comparison of runs, the W&B workspace and summary, the progress line and the notebooks are made from
these rows. A new metric is logged where it is measured and gets one row here; a plugin calls :func:`register` where it
is imported. What a plugin registered is written beside ``metrics.csv``, so that a report needs the plugin no more.
"""

from __future__ import annotations

from collections.abc import Iterable

from vidlit.errors import UserError
from vidlit.runs.logged_name import LoggedName as LoggedName

OVERFITTING, EXPOSURE, SAMPLES, THROUGHPUT = "Overfitting", "Exposure", "Copies and diversity", "Throughput"
SECTIONS = (OVERFITTING, EXPOSURE, SAMPLES, THROUGHPUT)
"""Of the report and the W&B workspace, in their order; sections that a plugin adds follow."""

_PLUGGED: dict[str, LoggedName] = {}


def register(row: LoggedName) -> LoggedName:
    """Add the row of a metric that something outside the package logs; the same row may come again.

    Returns:
        The row, to log by: ``self.log(GRAIN.name, ...)``.

    Raises:
        UserError: another row has its name.

    Example:
        >>> row = register(LoggedName("grain/strength", "Grain of the samples", "Grain", summary="max"))
        >>> row.text(0.12345)
        '0.123'
    """
    known = next((each for each in all_rows() if each.name == row.name), row)
    if known != row:
        raise UserError(f"the name {row.name} is taken ({known.title}): log under another one.")
    _PLUGGED[row.name] = row
    return row


def plugged() -> list[LoggedName]:
    """The rows that came from outside the package."""
    return list(_PLUGGED.values())


def all_rows(more: Iterable[LoggedName] = ()) -> list[LoggedName]:
    """Every row there is, in the order of sections; what stays in the files comes last.

    Args:
        more: rows that a run directory brings, for names that are not known here.
    """
    found: dict[str, LoggedName] = {}
    for row in (*OWN, *_PLUGGED.values(), *more):
        found.setdefault(row.name, row)
    sections = list(dict.fromkeys([*SECTIONS, *(row.section for row in found.values() if row.section), ""]))
    return sorted(found.values(), key=lambda row: sections.index(row.section))


def charts(rows: Iterable[LoggedName]) -> dict[str, dict[str, list[LoggedName]]]:
    """Rows that are shown, by section and by heading of their chart."""
    found: dict[str, dict[str, list[LoggedName]]] = {}
    for row in rows:
        if row.section:
            found.setdefault(row.section, {}).setdefault(row.heading, []).append(row)
    return found


# -- the rows: losses

STEP = "trainer/global_step"
"""The step axis of every chart in W&B, as Lightning names it."""
CHANGE, SEEN, TIME = "change against the base model, %", "times each video was seen", "% of the time"
HELD_OUT, AUDITS = "data.split.val_fraction", "samples.num_audit"
BUCKETS, DEVICE = "data.buckets", "trainer.accelerator"
DRIFT_POLICY = "overfit_stopping.policy"

VAL_LOG_RATIO = LoggedName(
    "val/log_ratio",
    "Validation loss",
    OVERFITTING,
    chart="Validation and training loss",
    unit=CHANGE,
    scale="log_ratio",
    lower_is_better=True,
    compared=True,
    short="val loss",
    words="Both sets are scored at fixed noise, so two checks can be compared. Overfitting is where the validation "
    "loss turns up while the loss on the training subset still falls.",
    needs=HELD_OUT,
)
TRAIN_EVAL_LOG_RATIO = LoggedName(
    "train_eval/log_ratio",
    "Training subset's loss",
    OVERFITTING,
    chart="Validation and training loss",
    unit=CHANGE,
    scale="log_ratio",
    lower_is_better=True,
    compared=True,
)
VAL_LOG_RATIO_BIN = LoggedName(
    "val/log_ratio_bin_<k>",
    "Validation loss by level of noise",
    OVERFITTING,
    unit=CHANGE,
    scale="log_ratio",
    lower_is_better=True,
    words="Little noise asks for detail, much noise for layout and motion: they need not turn at once.",
    needs=HELD_OUT,
)
TRAIN_EVAL_LOG_RATIO_BIN = LoggedName(
    "train_eval/log_ratio_bin_<k>",
    "Training subset's loss by level of noise",
    unit=CHANGE,
    scale="log_ratio",
    lower_is_better=True,
)
VAL_LOG_RATIO_BUCKET = LoggedName(
    "val/log_ratio_bucket_<bucket>",
    "Validation loss by bucket",
    OVERFITTING,
    unit=CHANGE,
    scale="log_ratio",
    lower_is_better=True,
    words="Frames x height x width of the clips: a bucket of few clips may overfit before the others.",
    needs=BUCKETS,
)
VAL_SCORE = LoggedName(
    "val/score",
    "Validation loss without jumps of single recordings, which the best check is chosen by",
    unit=CHANGE,
    scale="log_ratio",
    lower_is_better=True,
    needs=HELD_OUT,
)
GAP = LoggedName(
    "divergence/gap",
    "Gap between validation and training loss",
    OVERFITTING,
    unit="%",
    scale="log_ratio",
    words="How far the validation loss is above the training subset's, each against the base model's.",
    needs=HELD_OUT,
)
STATISTIC = LoggedName(
    "divergence/statistic",
    "Rise of the validation loss since its lowest stretch",
    OVERFITTING,
    chart="The test behind the stop",
    unit="standard errors",
    summary="max",
    lower_is_better=True,
    words="Above the threshold the rise is larger than chance explains. It must also last, and hold across recordings.",
    needs=HELD_OUT,
)
THRESHOLD = LoggedName(
    "divergence/threshold",
    "Threshold",
    OVERFITTING,
    chart="The test behind the stop",
    unit="standard errors",
    limit=True,
    needs=HELD_OUT,
)
DRIFT = LoggedName(
    "drift/velocity",
    "Drift from the base model",
    OVERFITTING,
    unit="% of the velocity's square, at captions that are not the clips'",
    scale="share",
    summary="last",
    lower_is_better=True,
    compared=True,
    words="How far predictions have moved where nothing was to be learned: what the model forgets.",
    needs=DRIFT_POLICY,
)
TRAIN_LOSS = LoggedName(
    "train/loss",
    "Loss of the training batches",
    OVERFITTING,
    unit="at random noise",
    summary="last",
    lower_is_better=True,
    short="loss",
    noisy=True,
    words="Noise and clips differ from step to step, so this curve says little about overfitting.",
)
TRAIN_LOSS_BUCKET = LoggedName(
    "train/loss_bucket_<bucket>",
    "Loss of the training batches by bucket",
    OVERFITTING,
    unit="at random noise, mean since the last log",
    summary="last",
    lower_is_better=True,
    needs=BUCKETS,
    noisy=True,
)
LEARNING_RATE = LoggedName("train/lr", "Learning rate", OVERFITTING, unit="of the step", summary="last")
GRADIENT_NORM = LoggedName(
    "train/grad_norm",
    "Norm of the gradient",
    OVERFITTING,
    unit="before clipping, over all trained parameters",
    summary="mean",
    words="Mostly above trainer.gradient_clip_val: nearly every step is clipped. Jumps: the learning rate is too high.",
    noisy=True,
)
VAL_LOSS = LoggedName(
    "val/loss",
    "Validation loss, as measured",
    OVERFITTING,
    chart="Loss at fixed noise",
    unit="mean squared error",
    summary="min",
    lower_is_better=True,
    needs=HELD_OUT,
)
TRAIN_EVAL_LOSS = LoggedName(
    "train_eval/loss",
    "Training subset's loss, as measured",
    OVERFITTING,
    chart="Loss at fixed noise",
    unit="mean squared error",
    summary="min",
    lower_is_better=True,
)

# -- exposure

EXPOSURE_MEAN = LoggedName(
    "exposure/mean",
    "On average",
    EXPOSURE,
    chart="Exposures over the run",
    unit=SEEN,
    summary="max",
    compared=True,
    short="exposures",
    words="Up to 10 conservative, up to 50 moderate, under 100 high, from 100 on risky.",
)
EXPOSURE_MAX = LoggedName("exposure/max", "Most often seen video", EXPOSURE, chart="Exposures over the run", unit=SEEN)
EXPOSURE_ADJUSTED = LoggedName(
    "exposure/adjusted",
    "Exposures at the reference run's worth",
    EXPOSURE,
    unit=SEEN,
    words="Counted by what a step is worth at this learning rate, batch size and number of videos.",
)
EXPOSURE_HISTOGRAM = LoggedName("exposure/histogram", "Videos by exposures", EXPOSURE, unit="videos", kind="histogram")

# -- audits of samples

COPIES_RATIO_MIN = LoggedName(
    "copies/ratio_min",
    "Nearest sample to its own training clip",
    SAMPLES,
    unit="of the distance to the nearest clip of another recording",
    summary="min",
    lower_is_better=False,
    needs=AUDITS,
)
COPIES_COUNT = LoggedName(
    "copies/count",
    "Copies among the samples",
    SAMPLES,
    unit="samples nearer to their clip than the limit",
    summary="max",
    lower_is_better=True,
    needs=AUDITS,
)
COPIES_GAP = LoggedName(
    "copies/gap",
    "How much nearer training prompts came to their clips than validation prompts",
    SAMPLES,
    unit="log-ratio of distances against step 0",
    summary="max",
    lower_is_better=True,
    compared=True,
    words="A subject or a style brings both nearer; memorising brings training prompts alone.",
    needs=AUDITS,
)
DIVERSITY_LOG_RATIO = LoggedName(
    "diversity/log_ratio",
    "Variety of the samples against that of their clips",
    SAMPLES,
    unit="% against the clips",
    scale="log_ratio",
    summary="min",
    lower_is_better=False,
    compared=True,
    words="Where it falls, different prompts give the same video.",
    needs=AUDITS,
)
FID = LoggedName(
    "quality/fid",
    "FID of the samples",
    SAMPLES,
    unit="distance to the training clips",
    summary="min",
    lower_is_better=True,
    needs="samples.metrics",
)
KID = LoggedName(
    "quality/kid",
    "KID of the samples",
    SAMPLES,
    unit="distance to the training clips",
    summary="min",
    lower_is_better=True,
    needs="samples.metrics",
)
MIFID = LoggedName(
    "quality/mifid",
    "MIFID of the samples",
    SAMPLES,
    unit="the same, larger where samples are copies",
    summary="min",
    lower_is_better=True,
    needs="samples.metrics",
)
QUALITY = {"fid": FID, "kid": KID, "mifid": MIFID}
"""By what ``samples.metrics`` calls them."""
AUDIT_VIDEO = LoggedName(
    "samples/audit_<kk>", "The same prompt and noise over time", SAMPLES, needs=AUDITS, kind="videos"
)
NEAREST_VIDEO = LoggedName(
    "samples/nearest_<kk>", "Beside the nearest training clip", SAMPLES, needs=AUDITS, kind="videos"
)
PROMPT_VIDEO = LoggedName(
    "samples/prompt_<kk>", "Your own prompts over time", SAMPLES, needs="samples.prompts", kind="videos"
)
SAMPLE_VIDEO = LoggedName(
    "samples/<kk>", "From the weights that are kept", SAMPLES, needs="samples.num_videos", kind="videos"
)

# -- throughput

SAMPLES_PER_SECOND = LoggedName(
    "perf/samples_per_s",
    "Samples per second",
    THROUGHPUT,
    unit="training clips, over all ranks",
    summary="mean",
    lower_is_better=False,
    compared=True,
    noisy=True,
)
TOKENS_PER_SECOND = LoggedName(
    "perf/tokens_per_s",
    "Tokens per second",
    THROUGHPUT,
    unit="latent positions, over all ranks",
    summary="mean",
    lower_is_better=False,
    noisy=True,
)
DATA_WAIT = LoggedName(
    "perf/data_wait",
    "Time spent waiting for data",
    THROUGHPUT,
    unit=TIME,
    scale="share",
    lower_is_better=True,
    noisy=True,
)
RUN_SECONDS = LoggedName("perf/run_s", "Time since the run began, without breaks", unit="s")
VALIDATION_SHARE = LoggedName(
    "perf/validation_share", "Time spent on checks", THROUGHPUT, unit=TIME, scale="share", lower_is_better=True
)
AUDIT_SHARE = LoggedName(
    "perf/audit_share", "Time spent on audits", THROUGHPUT, unit=TIME, scale="share", lower_is_better=True, needs=AUDITS
)
MFU = LoggedName(
    "perf/mfu",
    "Model FLOP utilisation",
    THROUGHPUT,
    unit="% of the device's peak",
    scale="share",
    lower_is_better=False,
    noisy=True,
)
PEAK_MEMORY = LoggedName(
    "perf/peak_memory_gb", "Peak (of the GPU's, where there is one)", THROUGHPUT, chart="Memory of rank 0", unit="GB"
)
MEMORY_FORECAST = LoggedName(
    "perf/memory_forecast_gb", "Forecast of the peak", THROUGHPUT, chart="Memory of rank 0", unit="GB", needs=DEVICE
)
MAIN_MEMORY = LoggedName(
    "perf/main_memory_gb", "Main memory of the process", THROUGHPUT, chart="Memory of rank 0", unit="GB"
)
DEVICE_MEMORY = LoggedName(
    "perf/device_memory_gb", "In use on the GPU", THROUGHPUT, chart="Memory of rank 0", unit="GB", needs=DEVICE
)

OWN = tuple(each for each in list(globals().values()) if isinstance(each, LoggedName))
"""The rows above: what the package itself logs."""
