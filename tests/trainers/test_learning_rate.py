"""The learning-rate schedule: nnU-Net's by default, with a warm-up or a cosine on request."""

from __future__ import annotations

import math

import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

from nnunet_mamba_mis.trainers.learning_rate import WarmupSchedule


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)], lr=1)


def rates(scheduler, epochs) -> list[float]:
    """Return the rate of the second group of parameters in each of these epochs."""
    result = []
    for epoch in epochs:
        scheduler.step(epoch)
        assert scheduler.get_last_lr() == [group["lr"] for group in scheduler.optimizer.param_groups]
        result.append(scheduler.optimizer.param_groups[1]["lr"])
    return result


def test_the_default_is_nnunets_schedule():
    ours, theirs = (kind(optimizer(), 1e-3, 20) for kind in (WarmupSchedule, PolyLRScheduler))
    assert rates(ours, range(20)) == rates(theirs, range(20))
    assert ours.optimizer.param_groups == theirs.optimizer.param_groups


@pytest.mark.feature("Recipe", "`warmup_epochs`, `schedule`")
@pytest.mark.parametrize(("shape", "third"), [("poly", 0.5**0.9), ("cosine", 0.5)])
def test_the_rate_rises_with_each_step_and_then_falls(shape, third):
    schedule = WarmupSchedule(optimizer(), 0.8, epochs=6, shape=shape, warmup_epochs=2, steps_per_epoch=2)
    assert rates(schedule, [0, 0.5, 1, 1.5]) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    after = rates(schedule, range(2, 6))
    assert (after[0], after[2]) == pytest.approx((0.8, 0.8 * third))
    assert after == sorted(after, reverse=True) and after[-1] > 0


def test_warmup_is_limited_to_half_of_a_short_run():
    schedule = WarmupSchedule(optimizer(), 1, epochs=1, warmup_epochs=5, steps_per_epoch=10)
    by_step = rates(schedule, [step / 10 for step in range(10)])
    assert math.isclose(max(by_step), 1) and by_step.index(max(by_step)) in (4, 5)


def test_unknown_schedule_is_named():
    with pytest.raises(ValueError, match=r"'linear'.*poly, cosine"):
        WarmupSchedule(optimizer(), 1, 10, "linear")
