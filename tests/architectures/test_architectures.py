"""The network: parity with the authors', shapes, precision, gradients and compilation."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from torch.utils.flop_counter import FlopCounterMode

from nnunet_mamba_mis.architectures import VARIANTS, MambaMIS, deep_supervision_sizes, load_reference_weights
from nnunet_mamba_mis.architectures.basic_blocks import BSSS
from nnunet_mamba_mis.architectures.convolutions import InstanceNorm, ResidualConvolutions
from nnunet_mamba_mis.architectures.mamba_mis import Variant
from nnunet_mamba_mis.architectures.resampling import PatchExpand, PatchMerge
from nnunet_mamba_mis.architectures.scan_blocks import BFSS, S6, SS2D, DepthwiseMixer, NoSSM
from nnunet_mamba_mis.architectures.spectral_gate import SpectralGate

ABLATIONS = [
    {"scan": "ss2d"},
    {"spectral_gate": False},
    {"fusion_bridge": False},
    {"attention_bridge": False},
    {"attention_bridge": False, "fusion_bridge": False},
    {"block": "cnn"},
    {"block": "vit"},
    {"block": "nossm"},
    {"discretization": "mamba"},
    {"d_state": 4},
]
NETWORKS = {"patch": {}, "conv": {"stem": "conv"}, "hybrid": {"stem": "conv", "variant": "H"}}
each_network = pytest.mark.parametrize("kwargs", NETWORKS.values(), ids=NETWORKS)


def network(patch_size=(32, 32), input_channels=3, num_classes=2, variant="S", **kwargs) -> MambaMIS:
    return MambaMIS(input_channels, num_classes, patch_size, variant=variant, **kwargs)


@pytest.fixture(scope="module")
def parity(shared):
    """Weights, input and float64 output of the authors' network."""
    with np.load(shared / "parity" / "mamba_mis_s_64.npz") as archive:
        weights = {k.removeprefix("weights/"): torch.from_numpy(archive[k]) for k in archive.files if "/" in k}
        return weights, torch.from_numpy(archive["input"]), torch.from_numpy(archive["output"])


def errors(parity, dtype):
    """Return the distance of our network's logits, computed in dtype, from the authors' in float64."""
    weights, x, expected = parity
    net = network((64, 64), num_classes=1).to(dtype)
    load_reference_weights(net, weights)
    with torch.no_grad():
        return (net(x.to(dtype)).double() - expected).abs()


def test_agrees_with_the_authors_network(parity):
    assert errors(parity, torch.float64).max() <= 1e-9


def test_agrees_with_the_authors_network_in_float32(parity):
    """LayerNorms over two or three nearly equal channels amplify rounding errors up to 316 times.

    Even with only the stem in float32, one pixel is off by 1e-4. One pixel in a thousand may therefore be off by more
    than 1e-4, but none by more than 1e-3.
    """
    error = errors(parity, torch.float32)
    assert error.mean() <= 1e-5
    assert error.quantile(0.999) <= 1e-4
    assert error.max() <= 1e-3


def test_reference_weights_that_do_not_fit_are_named(parity):
    weights = dict(parity[0])
    weights["surplus"] = weights.pop("head.bias")
    with pytest.raises(ValueError, match=r"decoder.seg_layers.0.bias.*surplus"):
        load_reference_weights(network((64, 64), num_classes=1), weights)
    with pytest.raises(ValueError, match=r"spectral_gate.weight.*\(16, 9, 16, 2\).*\(8, 9, 16, 2\)"):
        load_reference_weights(network((32, 64), num_classes=1), parity[0])


@pytest.mark.parametrize(("variant", "millions"), [("S", 2.94), ("B", 4.28), ("L", 9.06)])
def test_parameter_counts_match_the_paper(variant, millions):
    net = network((256, 256), num_classes=1, variant=variant)
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize(
    "kwargs",
    [
        *({"variant": variant} for variant in "SBLH"),
        {"stem": "conv"},
        {"stem": "conv", "variant": "H"},
        {"stem": "conv", "variant": "H", "block": "nossm"},
    ],
    ids=str,
)
def test_every_parameter_gets_a_gradient(kwargs):
    net = network((64, 64), **kwargs, deep_supervision=True)
    sum(y.square().mean() for y in net(torch.randn(2, 3, 64, 64))).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.feature("Ablations", "every parameter of each gets a gradient")
@pytest.mark.parametrize("kwargs", ABLATIONS, ids=lambda kwargs: ",".join(f"{k}={v}" for k, v in kwargs.items()))
def test_ablations_run_and_every_parameter_gets_a_gradient(kwargs):
    net = network(**kwargs)
    y = net(torch.randn(2, 3, 32, 32))
    assert y.shape == (2, 2, 32, 32)
    y.square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@each_network
@pytest.mark.parametrize("patch_size", [(32, 32), (33, 40), (70, 31), (1, 1), (17, 96)], ids=str)
@pytest.mark.parametrize(("input_channels", "num_classes"), [(1, 4), (5, 1)])
def test_any_patch_size_channels_and_classes(kwargs, patch_size, input_channels, num_classes):
    net = network(patch_size, input_channels, num_classes, **kwargs)
    assert net(torch.randn(1, input_channels, *patch_size)).shape == (1, num_classes, *patch_size)


@each_network
@pytest.mark.parametrize("patch_size", [(32, 64), (70, 50), (100, 36)], ids=str)
def test_deep_supervision_matches_the_sizes_of_nnunets_targets(kwargs, patch_size):
    net = network(patch_size, **kwargs, deep_supervision=True)
    outputs = net(torch.randn(1, 3, *patch_size))
    scales = [[1 / stride] * 2 for stride in (1, 4, 8, 16, 32)]
    targets = DownsampleSegForDSTransform(scales)(segmentation=torch.zeros(1, *patch_size))["segmentation"]
    assert [y.shape[2:] for y in outputs] == [t.shape[1:] for t in targets]
    assert [tuple(y.shape[2:]) for y in outputs] == deep_supervision_sizes(patch_size)


@each_network
def test_deep_supervision_weights_load_into_a_network_without_it(kwargs):
    trained, plain = network(**kwargs, deep_supervision=True), network(**kwargs)
    plain.load_state_dict(trained.state_dict())
    x = torch.randn(1, 3, 32, 32)
    trained.decoder.deep_supervision = False  # as nnU-Net does for validation
    with torch.no_grad():
        torch.testing.assert_close(plain(x), trained(x), rtol=0, atol=0)


@each_network
def test_padded_network_equals_a_larger_one_on_the_padded_image(kwargs):
    """A 40×40 network's logits are the top left 40×40 logits of a 64×64 network on the image padded with zeros."""
    small, large = network((40, 40), **kwargs), network((64, 64), **kwargs)
    large.load_state_dict(small.state_dict())
    x = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        expected = large(torch.nn.functional.pad(x, (0, 24, 0, 24)))[..., :40, :40]
        torch.testing.assert_close(small(x), expected)


@each_network
def test_every_module_has_one_name(kwargs):
    """If a module has two names, torch.export wraps the network in proxies, which native code does not replace."""
    net = network(**kwargs)
    assert len(list(net.named_modules(remove_duplicate=False))) == len(list(net.modules()))


def test_residual_convolutions_are_accurate_where_means_exceed_deviations():
    """On a CPU, torch's group norm of channels-last float32 is off by 100 here."""
    block = ResidualConvolutions(16)
    torch.nn.init.dirac_(block.convs[0].weight)
    x = 100 + 0.1 * torch.randn(2, 8, 8, 16)
    with torch.no_grad():
        y = block(x) - x
        torch.testing.assert_close(y.double(), block.double()(x.double()) - x, rtol=0, atol=1e-3)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
def test_instance_norm_equals_torchs(layout):
    """On a CPU, torch's group norm of channels-last float32 is off by 100 here."""
    norm, expected = InstanceNorm(16), torch.nn.InstanceNorm2d(16, affine=True).double()
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    expected.load_state_dict(norm.state_dict())
    x = (100 + 0.1 * torch.randn(2, 16, 8, 8)).to(memory_format=layout)
    torch.testing.assert_close(norm(x).double(), expected(x.double()), rtol=0, atol=5e-3)


def test_instance_norm_of_a_pixel_is_its_bias():
    norm = InstanceNorm(4)
    torch.nn.init.normal_(norm.bias)
    torch.testing.assert_close(norm(torch.randn(2, 4, 1, 1)), norm.bias.view(1, 4, 1, 1).expand(2, 4, 1, 1))


@pytest.mark.parametrize("resolution", [0, 1], ids=["full", "half"])
def test_features_of_a_convolutional_stem_are_skips(resolution):
    net = network(stem="conv")
    with torch.no_grad():
        features = net.encoder(torch.randn(1, 3, 32, 32))
        assert [x.shape[2] for x in features[:2]] == [32, 16]
        (logits,) = net.decoder(features)
        features[resolution] = torch.zeros_like(features[resolution])
        (without,) = net.decoder(features)
    changed = (logits - without).abs() > 1e-3 * logits.abs().mean()
    assert changed.float().mean() > 0.9


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"variant": "XL"}, "'XL'.*'S', 'B', 'L'"),
        ({"block": "resnet"}, "'resnet'"),
        ({"scan": "snake"}, "'snake'"),
        ({"stem": "pyramid"}, "'pyramid'.*'patch', 'conv'"),
        ({"block": "nossm", "scan": "ss2d"}, "'nossm'.*'ss2d'"),
        ({"discretization": "euler"}, "'euler'"),
        ({"patch_size": (32, 32, 32)}, r"patch_size.*\(32, 32, 32\)"),
        ({"patch_size": (0, 32)}, "patch_size"),
        ({"num_classes": 0}, "num_classes"),
        ({"strides": [[1, 1], [2, 2]]}, "strides"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_wrong_argument_is_a_value_error(kwargs, message):
    with pytest.raises(ValueError, match=message):
        network(**kwargs)


@pytest.mark.parametrize("shape", [(1, 3, 32, 64), (1, 1, 32, 32), (3, 32, 32)], ids=str)
def test_wrong_image_is_a_value_error(shape):
    with pytest.raises(ValueError, match=r"\(B, 3, 32, 32\)"):
        network()(torch.zeros(shape))


@each_network
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_keeps_values_finite_and_close(kwargs, dtype):
    net = network(**kwargs, deep_supervision=True)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = net(x)
        with torch.autocast("cpu", dtype=dtype):
            outputs = net(x)
    assert all(y.isfinite().all() for y in outputs)
    error = (outputs[0].float() - expected[0]).abs().mean() / expected[0].abs().mean()
    assert error < (0.02 if dtype == torch.float16 else 0.1)


@each_network
def test_bridge_products_beyond_half_precision_stay_finite(kwargs):
    """Factors of 30 multiply to 810,000, more than float16 holds."""
    net = network(**kwargs, deep_supervision=True)
    with torch.no_grad():
        for smooth in net.bridge.smooth.parameters():
            smooth.fill_(30.0) if smooth.dim() == 1 else smooth.zero_()
        with torch.autocast("cpu", dtype=torch.float16):
            skips = net.bridge(net.encoder(torch.randn(1, 3, 32, 32))[-4:])
            outputs = net(torch.randn(1, 3, 32, 32))
    assert skips[0].abs().max() > torch.finfo(torch.float16).max
    assert all(y.isfinite().all() for y in outputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scan_and_spectral_gate_are_float32_under_autocast(dtype):
    # 24 and 20 are not powers of two: a half-precision FFT on CUDA would refuse these sizes
    gate, scan = SpectralGate((24, 20), 4), S6(4)
    x = torch.randn(1, 24, 20, 4)
    with torch.no_grad():
        expected = gate(x)
        # projections whose results are exact in half precision, so only the scan itself could round
        scan.delta.weight.zero_()
        scan.bc.weight.copy_(torch.eye(4).repeat(16, 1))
        features = torch.randint(-1, 2, (1, 5, 10, 4)).float()
        in_float32 = scan(features)
        with torch.autocast("cpu", dtype=dtype):
            torch.testing.assert_close(gate(x), expected, rtol=0, atol=0)
            torch.testing.assert_close(scan(features), in_float32, rtol=0, atol=0)
    assert in_float32.abs().max() > 0


def test_spectral_gate_of_ones_is_the_identity():
    gate = SpectralGate((6, 10), 3)
    with torch.no_grad():
        gate.weight.copy_(torch.tensor([1.0, 0.0]))
        x = torch.randn(2, 6, 10, 3)
        torch.testing.assert_close(gate(x), x)


def test_bfss_scans_rows_and_columns():
    """With an identity as fusion, channel 0 sees positions up to its own in row order, channel 1 in column order."""
    bfss = BFSS(1, d_state=4)
    identity = torch.nn.Linear(2, 2, bias=True)
    torch.nn.init.eye_(identity.weight)
    bfss.fusion = torch.nn.Sequential(identity)
    x = torch.randn(1, 4, 5, 1, requires_grad=True)
    y = bfss(x)
    by_rows = torch.autograd.grad(y[0, 2, 3, 0], x, retain_graph=True)[0][0, :, :, 0] != 0
    by_columns = torch.autograd.grad(y[0, 2, 3, 1], x)[0][0, :, :, 0] != 0
    row, column = torch.meshgrid(torch.arange(4), torch.arange(5), indexing="ij")
    assert torch.equal(by_rows, row * 5 + column <= 2 * 5 + 3)
    assert torch.equal(by_columns, column * 4 + row <= 3 * 4 + 2)


@pytest.mark.feature("Ablations", "`_noSSM` has the parameters of scans, and their cost within 5 %")
@pytest.mark.parametrize("channels", [1, 8, 16, 128])
def test_control_without_state_spaces_has_the_parameters_and_cost_of_scans(channels):
    """Cost in operations per pixel: 2 per weight, 9 per state of a scan, 5 per SiLU with the addition after it."""
    scan, control = S6(channels), DepthwiseMixer(channels)
    parameters = [sum(p.numel() for p in module.parameters()) for module in (scan, control)]
    assert parameters[0] == parameters[1]
    side = 16
    with FlopCounterMode(display=False) as counter:
        control(torch.randn(1, side, side, channels))
    cost = counter.get_total_flops() / side**2 + 4 * 5 * channels
    projections = 2 * (scan.delta.weight.numel() + scan.bc.weight.numel())
    assert cost == pytest.approx(projections + 9 * scan.A_log.numel(), rel=0.05)


@pytest.mark.feature("Ablations", "`_noSSM` has no scan, even in the bridge")
@pytest.mark.parametrize("kwargs", [*({"variant": variant} for variant in "SBL"), *NETWORKS.values()], ids=str)
def test_control_without_state_spaces_contains_no_scan(kwargs):
    net, control = network(**kwargs), network(**kwargs, block="nossm")
    assert not any(isinstance(module, S6) for module in control.modules())
    counts = [sum(p.numel() for p in n.parameters()) for n in (net, control)]
    assert counts[0] == counts[1]


def test_ss2d_sees_the_whole_image_from_everywhere():
    x = torch.randn(1, 4, 5, 1, requires_grad=True)
    (gradient,) = torch.autograd.grad(SS2D(1, d_state=4)(x)[0, 2, 3, 0], x)
    assert (gradient != 0).all()


@pytest.mark.feature("Ablations", "`_ss2d` has SS2D in the bridge, too")
def test_ss2d_replaces_every_bfss():
    net, ablation = network(), network(scan="ss2d")
    scans = {name for name, module in net.named_modules() if isinstance(module, BFSS)}
    assert {name for name, module in ablation.named_modules() if isinstance(module, SS2D)} == scans
    assert not any(isinstance(module, BFSS) for module in ablation.modules())
    attention = ablation.bridge.attentions[0].spatial_scan
    assert len(attention.scans) == 4 and not hasattr(attention, "fusion")


@pytest.mark.parametrize(
    ("arguments", "scan"),
    [
        *(({"block": block}, BFSS) for block in ("bsss", "cnn", "vit")),
        ({"block": "nossm"}, NoSSM),
        ({"scan": "ss2d"}, SS2D),
        ({"fusion_bridge": False}, BFSS),
        ({"spectral_gate": False}, BFSS),
        ({"attention_bridge": False}, None),
    ],
    ids=str,
)
def test_bridge_has_the_scans_of_the_ablation(arguments, scan):
    attentions = network(**arguments, discretization="mamba", d_state=4).bridge.attentions
    scans = [s for attention in attentions for s in (attention.spatial_scan, attention.channel_scan)]
    assert [type(s) for s in scans] == [scan] * (8 if scan else 0)
    inner = [s6 for s in scans for s6 in s.scans if isinstance(s6, S6)]
    assert all(s6.discretization == "mamba" and s6.A_log.shape[1] == 4 for s6 in inner)


def test_ss2d_weights_with_bfss_in_the_bridge_are_refused_in_one_line():
    """Development versions before 0.1.0 built such networks."""
    old = network(scan="ss2d")
    old.bridge = network().bridge
    with pytest.raises(RuntimeError, match="bridge") as raised:
        network(scan="ss2d").load_state_dict(old.state_dict())
    assert "Missing key" not in str(raised.value)


@pytest.mark.parametrize("scan", ["bfss", "ss2d"])
def test_reference_weights_load_by_the_authors_names(scan):
    source, target = network(scan=scan), network(scan=scan)
    names = {
        r".stages.": ".",
        "A_log": "a_log",
        ".depthwise.": ".dw.",
        ".spectral_gate.": ".sg.",
        "spectral_norm": "sg_norm",
    }
    whole = {"encoder.stem.conv": "embed", "encoder.stem.norm": "embed_norm", "decoder.seg_layers.0": "head"}
    whole |= {"encoder.merges": "merges", "decoder.expands": "expands"}
    weights = {}
    for name, tensor in source.state_dict().items():
        for ours, theirs in (whole | names).items():
            name = name.replace(ours, theirs)
        weights[name.removesuffix(".D") + ".d" if name.endswith(".D") else name] = tensor
    load_reference_weights(target, weights)
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def hooked_modules(register):
    """Hook each module of a block, run the block, and return the names of all modules and of those whose hook ran."""
    block = BSSS(8, (4, 4), d_state=3)
    called, names = set(), {}
    for name, module in block.named_modules():
        if name and not isinstance(module, torch.nn.ModuleList):
            names[name] = getattr(module, register)(lambda *_, name=name: called.add(name))
    block(torch.randn(1, 4, 4, 8, requires_grad=True)).sum().backward()
    return set(names), called


@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
def test_hooks_of_all_modules_of_a_block_run(register):
    """Hooks run even on modules whose weights a joint operation uses: a scan, its projections and its fusion."""
    registered, called = hooked_modules(register)
    assert called == registered and "scan.scans.0.delta" in registered and "scan.fusion" in registered


def test_global_hooks_run():
    block, called = BSSS(8, (4, 4), d_state=3), set()
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: called.add(module))
    try:
        block(torch.randn(1, 4, 4, 8))
    finally:
        handle.remove()
    assert called == {module for module in block.modules() if not isinstance(module, torch.nn.ModuleList)}


def test_projections_of_a_scan_can_be_replaced():
    """Adapters and quantisation replace linear layers; even a new bias takes effect."""
    scan, x = S6(4, d_state=3), torch.randn(1, 3, 5, 4)
    wrapped = torch.nn.Linear(4, 6)
    with torch.no_grad():
        wrapped.weight.copy_(scan.bc.weight)
        before = scan(x)
        scan.bc = wrapped
        assert not torch.allclose(scan(x), before)
        wrapped.bias.zero_()
        torch.testing.assert_close(scan(x), before)


def test_pruned_projections_follow_their_mask():
    """`prune` computes the weight when the layer is called."""
    scan, x = S6(4, d_state=3), torch.randn(1, 3, 5, 4)
    torch.nn.utils.prune.identity(scan.delta, "weight")
    plain = S6(4, d_state=3)
    with torch.no_grad():
        scan.delta.weight_orig.mul_(2)
        plain.load_state_dict({k.removesuffix("_orig"): v for k, v in scan.state_dict().items() if "mask" not in k})
    torch.testing.assert_close(scan(x), plain(x))


def test_s6_is_initialized_as_in_the_paper():
    s6 = S6(6, d_state=8)
    assert (s6.delta.bias == -4).all() and (s6.D == 1).all()
    torch.testing.assert_close(s6.A_log.exp(), torch.arange(1.0, 9).repeat(6, 1))


def test_bsss_drops_no_channel():
    assert BSSS(8, (4, 4)).widths == (2, 3, 3)
    assert BSSS(16, (4, 4)).widths == (5, 5, 6)


def test_patch_merge_orders_neighbours_by_column():
    merge = PatchMerge(1)
    merge.norm = torch.nn.Identity()
    with torch.no_grad():
        merge.proj.weight.zero_()[0, 1] = 1  # the second neighbour
        x = torch.arange(16.0).view(1, 4, 4, 1)
        assert merge(x)[0, 0, 0, 0] == x[0, 1, 0, 0]


def test_patch_expand_puts_rows_before_columns():
    expand = PatchExpand(1, 1, factor=2)
    expand.norm = torch.nn.Identity()
    with torch.no_grad():
        expand.proj.weight.copy_(torch.arange(1.0, 5)[:, None])
        assert expand(torch.ones(1, 1, 1, 1))[0, :, :, 0].tolist() == [[1, 2], [3, 4]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kwargs", [{}, {"stem": "conv", "attention_bridge": False, "fusion_bridge": False}], ids=["patch", "conv"]
)
def test_network_compiles_without_graph_breaks(kwargs, monkeypatch):
    """One block in the encoder and one in the decoder are enough: the others compile in the same way."""
    size = Variant((1, 0, 0, 0), (0, 0, 0, 0, 1), convolutions="stem" in kwargs)
    monkeypatch.setitem(VARIANTS, "S", size)
    net = network(**kwargs)
    x = torch.randn(1, 3, 32, 32)
    y = torch.compile(net, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(y, net(x))
    y.sum().backward()
    assert net.encoder.stem.conv.weight.grad is not None


def test_block_compiles_without_gradients():
    block, x = BSSS(8, (4, 4)), torch.randn(1, 4, 4, 8)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(block, backend="aot_eager", fullgraph=True)(x), block(x))


def test_importing_the_package_imports_neither_torch_nor_nnunet():
    code = "import sys, nnunet_mamba_mis, nnunet_mamba_mis.cli.main; print({'torch', 'nnunetv2'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
