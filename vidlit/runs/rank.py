"""Which of several processes this is, before Lightning is imported and connects them."""

from __future__ import annotations

import os

_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""Of torchrun, of Lightning's own launcher, of SLURM and of LSF, in the order in which Lightning asks them."""


def rank_from_environment() -> int:
    """Rank of this process as its launcher says; 0 where there is none. One process of a run has 0: it speaks."""
    return next((int(os.environ[name]) for name in _VARIABLES if os.environ.get(name, "").isdigit()), 0)
