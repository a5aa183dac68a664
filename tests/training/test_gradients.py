"""Gradients at ZeRO 0: their mean over ranks, in messages of limited size, and their norm."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tide_cache.training import gradients
from tide_cache.training.gradients import Gradients


def modules():
    """A module with gradients, one weight that has none yet and one that is not trained; and its copy."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    module[3].requires_grad_(False)
    module[1](module[0](torch.randn(5, 3))).square().sum().backward()
    other = copy.deepcopy(module)
    for mine, theirs in zip(module.parameters(), other.parameters(), strict=True):
        theirs.grad = None if mine.grad is None else mine.grad.clone()
    return module, other


class Sent:
    """A message on its way; it arrives when it is waited for, added to that of another rank with the same gradients."""

    def __init__(self, tensor):
        self.tensor = tensor

    def wait(self):
        self.tensor.mul_(2)


@pytest.mark.parametrize("most", [3, 14, 1000])
@pytest.mark.parametrize("max_norm", [0.1, 1e6])
def test_the_mean_of_equal_gradients_is_clipped_as_torch_does(monkeypatch, most, max_norm):
    sizes = []

    def all_reduce(tensor, async_op):
        sizes.append(tensor.numel())
        return Sent(tensor)

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(gradients, "MOST_ELEMENTS", most)
    for world_size in (1, 2):
        module, expected = modules()
        ours = Gradients(module, world_size)
        ours.average()
        ours.clip(max_norm)
        norm = torch.nn.utils.clip_grad_norm_(expected.parameters(), max_norm)
        torch.testing.assert_close(ours.norm, norm)
        for mine, theirs in zip(module.parameters(), expected.parameters(), strict=True):
            if mine.requires_grad:
                torch.testing.assert_close(mine.grad, torch.zeros_like(mine) if theirs.grad is None else theirs.grad)
            else:
                assert mine.grad is None
        ours.forget()
        assert all(parameter.grad is None for parameter in module.parameters())
    assert sum(sizes) == 12 + 4 + 8 + 2 + 4 + 2, "of the two ranks only"
    assert max(sizes) <= max(most, 12)
