"""Distance of probabilities in log-odds, log(p / (1 - p)), whose slope along a score is 1 however sure the model is."""

import torch
from torch import Tensor

SMALLEST = 1e-6
"""Of 1 - p: below it rounding of a float32 rules."""


def away(said: Tensor, wanted: Tensor, sure: float) -> Tensor:
    """Distance in log-odds of log-probabilities from those wanted [rows]; where these are surer than `sure`, from it
    and from below alone."""
    now, then = log_odds(said), log_odds(wanted)
    return torch.where(then < sure, (now - then).abs(), torch.relu(sure - now))


def log_odds(log_prob: Tensor) -> Tensor:
    """Of natural log-probabilities."""
    return log_prob - (-torch.expm1(log_prob)).clamp(min=SMALLEST).log()
