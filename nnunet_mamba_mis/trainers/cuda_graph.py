"""Training passes replayed as a CUDA graph: one launch instead of one for each of thousands of small kernels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# largest relative error of a replayed pass; passes in half precision with atomic additions differ from run to run
TOLERANCE = 1e-2


def replay_training_passes(network: nn.Module, image: Tensor) -> None:
    """Make calls of a network in training mode replay a CUDA graph of forward and backward, under fp16 autocast.

    Calls in evaluation mode are unchanged. No other thread may use CUDA during this call, so no data loader with pinned
    memory may run.

    Args:
        network: On a CUDA device, in training mode.
        image: A batch (B, C, H, W), float32, of the shape of all later batches.

    Raises:
        RuntimeError: Capture fails, or a replayed pass gives other values. In both cases the network is unchanged.
    """
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]  # of batch norms
    generator = torch.Generator(image.device).manual_seed(0)  # not the generator that a resumed run has restored
    image = torch.rand(image.shape, generator=generator, device=image.device)
    try:
        expected = _training_pass(network, image)
        with torch.autocast("cuda", cache_enabled=False):  # cached casts would not be replayed
            torch.cuda.make_graphed_callables(network, (torch.zeros_like(image),), allow_unused_input=True)
        replayed = _training_pass(network, image)
        error = ((replayed - expected).norm() / expected.norm()).item()
        if not error <= TOLERANCE:
            raise RuntimeError(f"replayed values differ from computed ones by {error:.1e}")
    except RuntimeError:
        vars(network).pop("forward", None)  # set by the capture
        raise
    finally:
        network.zero_grad(set_to_none=True)
        for buffer, value in buffers:
            buffer.copy_(value)


def _training_pass(network: nn.Module, image: Tensor) -> Tensor:
    """Return all outputs and all gradients of a loss as one vector; each of the two parts is scaled to norm 1."""
    network.zero_grad(set_to_none=True)
    with torch.autocast("cuda"):
        outputs = network(image)
    outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
    loss = sum(output.float().square().mean() for output in outputs)
    (1024 * loss).backward()  # small gradients would vanish in half precision
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    parts = [torch.cat([value.detach().float().flatten() for value in values]) for values in (outputs, gradients)]
    return torch.cat([part / part.norm() for part in parts])
