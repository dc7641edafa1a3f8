"""`enable_reproducibility`."""

from __future__ import annotations

import os
import random

import torch

from holdfast.errors import ConfigurationError

# The seed in force, for the data loaders that are prepared later.
_seed: int | None = None


def enable_reproducibility(seed: int = 0) -> None:
    """Makes a function give the same numbers each time it runs on as many workers of the same kind.

    Seeds `random`, NumPy and torch alike on every rank, and takes deterministic algorithms only: an operation that has
    none raises a `RuntimeError`, and some are slower. Data loaders prepared after it seed their own workers by rank.

    Args:
        seed: From 0 to 2**32 - 1.

    Raises:
        ConfigurationError: The seed is none that NumPy takes.
    """
    global _seed
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ConfigurationError(
            f"enable_reproducibility(seed=...) takes a whole number from 0 to 2**32 - 1, not {seed!r}"
        )
    _seed = seed
    random.seed(seed)
    torch.manual_seed(seed)
    try:
        import numpy as np
    except ImportError:  # torch runs without it
        pass
    else:
        np.random.seed(seed)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    # cuBLAS reads it when CUDA starts, and without it deterministic algorithms raise.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def loader_seed(rank: int) -> int | None:
    """Where the workers of this rank's data loaders begin, or None without reproducibility.

    Ranks differ: the same random augmentations on all of them would be no augmentation of the batch as a whole.
    """
    return None if _seed is None else (_seed << 24) + rank
