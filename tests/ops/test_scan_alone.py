"""`nnunet_mamba_mis.ops` without nnU-Net: a replacement for mamba_ssm's selective_scan_fn in other projects."""

from __future__ import annotations

import inspect
import math
import re
import subprocess
import sys

import pytest
import torch

from nnunet_mamba_mis.ops import selective_scan
from support.foreign_blocks import CrossScanBlock, MambaBlock
from support.paths import PROGRAMS, REPOSITORY

# dependencies of this package other than torch and numpy
OTHERS = (
    "nnunetv2", "dynamic_network_architectures", "batchgenerators", "batchgeneratorsv2", "acvl_utils", "SimpleITK",
    "tqdm", "imagecodecs", "PIL", "matplotlib", "filelock", "pydantic", "packaging", "scipy", "sklearn", "skimage",
    "torchvision", "einops",
)  # fmt: skip


def sequential_scan(u, delta, A, B, C, D, z=None, delta_bias=None, delta_softplus=False):
    """Compute Mamba's equations for one channel of one sequence at a time: slow, but plain."""
    batch, channels, length = u.shape
    grouped_B, grouped_C = (t if t.dim() == 4 else t[:, None] for t in (B, C))
    group = channels // grouped_B.shape[1]
    rows = []
    for b in range(batch):
        for d in range(channels):
            h = torch.zeros(A.shape[1], dtype=u.dtype)
            for t in range(length):
                step = delta[b, d, t] + delta_bias[d]
                step = torch.log1p(torch.exp(step)) if delta_softplus else step
                h = torch.exp(step * A[d]) * h + step * grouped_B[b, d // group, :, t] * u[b, d, t]
                y = torch.dot(grouped_C[b, d // group, :, t], h) + D[d] * u[b, d, t]
                rows.append(y if z is None else y * z[b, d, t] / (1 + torch.exp(-z[b, d, t])))
    return torch.stack(rows).view(batch, channels, length)


@pytest.mark.parametrize("block", [MambaBlock, CrossScanBlock])
def test_block_of_another_project_runs_on_a_cpu(block):
    """Values and gradients in float32 match those of a plain loop over positions in float64."""
    torch.manual_seed(0)
    features = torch.randn(1, 4, 3, 5)
    ours = block(4, selective_scan)
    plain = block(4, sequential_scan).double()
    plain.load_state_dict(ours.state_dict())
    results = []
    for model, x in ((ours, features), (plain, features.double())):
        x = x.clone().requires_grad_()
        y = model(x)
        gradients = torch.autograd.grad(y.square().sum(), [x, *model.parameters()])
        results.append([y, *gradients])
    for actual, expected in zip(*results, strict=True):
        assert actual.dtype == torch.float32
        expected = expected.detach()
        assert (actual - expected).abs().max() <= 2e-5 * max(1.0, expected.abs().max())


def test_arguments_have_the_order_and_names_of_mamba_ssm():
    names = [name for name, p in inspect.signature(selective_scan).parameters.items() if p.kind is not p.KEYWORD_ONLY]
    assert names == ["u", "delta", "A", "B", "C", "D", "z", "delta_bias", "delta_softplus", "return_last_state"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"B": torch.zeros(4, 3)}, "B must be"),  # a B that is the same at all positions
        ({"A": torch.zeros(4, 3, dtype=torch.complex64)}, "A must be of a real"),
    ],
    ids=["constant B", "complex A"],
)
def test_unsupported_arguments_of_mamba_ssm_are_refused(changes, message):
    B = torch.zeros(2, 3, 7)
    arguments = {"u": torch.zeros(2, 4, 7), "delta": torch.zeros(2, 4, 7), "A": torch.zeros(4, 3), "B": B, "C": B}
    with pytest.raises(ValueError, match=message):
        selective_scan(**(arguments | changes))


def test_example_of_the_documentation_runs_without_nnunet(tmp_path):
    page = (REPOSITORY / "documentation" / "how_to" / "scan_without_nnunet.md").read_text(encoding="utf-8")
    example = tmp_path / "example.py"
    example.write_text("\n".join(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)), encoding="utf-8")
    command = [sys.executable, PROGRAMS / "without_packages.py", ",".join(OTHERS), example]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    loss, error = map(float, done.stdout.split())
    assert math.isfinite(loss) and error < 1e-4
