"""Lightning's remarks, kept to themselves unless a user asks for them."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

VERBOSE_VARIABLE = "VIDLIT_VERBOSE"
"""Set in the environment, it lets Lightning say everything; further processes of a run inherit it."""
BARE_TRAINER: Mapping[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}
"""Options of a Trainer that says and saves nothing by itself."""
_TALKATIVE = (
    "lightning.pytorch",
    "lightning.fabric",
    "torchao",  # tells at every start which kernels it was built without
    "torch.utils._pytree",
    "diffusers.quantizers.torchao",
    "diffusers.pipelines.pipeline_utils",  # tells of a hub that cannot be reached, which the error that follows says
)


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep remarks about devices, worker counts, services and missing kernels to themselves; errors come through."""
    if os.environ.get(VERBOSE_VARIABLE):
        yield
        return
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
