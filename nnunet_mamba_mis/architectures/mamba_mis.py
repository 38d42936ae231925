"""Mamba-MIS: a U-shaped 2D segmentation network of BSSS blocks with the AMFFB bridge."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_mamba_mis.architectures.amffb import AMFFB
from nnunet_mamba_mis.architectures.basic_blocks import BLOCKS
from nnunet_mamba_mis.architectures.conv_stem import ConvStem, ConvUpsampling
from nnunet_mamba_mis.architectures.convolutions import ResidualConvolutions
from nnunet_mamba_mis.architectures.precision import at_least_float32, no_autocast
from nnunet_mamba_mis.architectures.resampling import PatchExpand, PatchMerge, PatchStem
from nnunet_mamba_mis.architectures.scan_blocks import SCANS, NoSSM
from nnunet_mamba_mis.ops.selective_scan.inputs import DISCRETIZATIONS

ENCODER_STRIDES = (4, 8, 16, 32)
DECODER_STRIDES = (32, 16, 8, 4, 1)
_LEVELS = len(ENCODER_STRIDES)
# the decoder's strides in the format of nnU-Net's plans: from full resolution down, each relative to the previous one;
# the last entry stands for a bottleneck, for which nnU-Net expects no logits
PLANS_STRIDES = ((1, 1), (4, 4), (2, 2), (2, 2), (2, 2), (1, 1))


class Variant(NamedTuple):
    """Size of the network.

    Attributes:
        encoder: Number of blocks in each encoder stage, in the order in which features pass through the stages.
        decoder: Number of blocks in each decoder stage, in the corresponding order.
        width: Channels at quarter resolution; they double with each stage below.
        convolutions: Whether stages begin with convolutions.
    """

    encoder: tuple[int, int, int, int]
    decoder: tuple[int, int, int, int, int]
    width: int = 16
    convolutions: bool = False

    @property
    def encoder_channels(self) -> list[int]:
        """Channels of the encoder's stages."""
        return [self.width * 2**i for i in range(_LEVELS)]

    @property
    def decoder_channels(self) -> list[int]:
        """Channels of the decoder's stages; with a convolutional stem, convolutions replace the last stage."""
        return [*reversed(self.encoder_channels), self.width // 2]


VARIANTS = {
    "S": Variant((1, 2, 2, 2), (2, 2, 2, 1, 1)),
    "B": Variant((2, 2, 2, 2), (2, 2, 2, 2, 2)),
    "L": Variant((3, 4, 4, 9), (9, 4, 4, 3, 3)),
    "H": Variant((1, 1, 1, 1), (1, 1, 1, 1, 1), width=32, convolutions=True),
}
STEMS: dict[str, type[PatchStem | ConvStem]] = {"patch": PatchStem, "conv": ConvStem}


class Stage(nn.Module):
    """Blocks at one resolution, after convolutions if the variant has them."""

    def __init__(
        self, convolutions: bool, block: str, depth: int, channels: int, size: tuple[int, int], **block_kwargs: Any
    ) -> None:
        super().__init__()
        first = [ResidualConvolutions(channels)] if convolutions else []
        self.blocks = nn.ModuleList([*first, *(BLOCKS[block](channels, size, **block_kwargs) for _ in range(depth))])

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C)."""
        for block in self.blocks:
            x = block(x)
        return x


class Encoder(nn.Module):
    """Stem, then four stages with patch merges between them.

    Args:
        input_channels: Channels of the image.
        size: Height and width of the image, multiples of 32.
        stem: Name of the stem.
        variant: Depths and width.
        block: Name of the basic block.
        block_kwargs: Further arguments of the block.
    """

    def __init__(
        self,
        input_channels: int,
        size: tuple[int, int],
        stem: str,
        variant: Variant,
        block: str,
        **block_kwargs: Any,
    ) -> None:
        super().__init__()
        self.strides = ENCODER_STRIDES
        self.output_channels = variant.encoder_channels
        self.stem = STEMS[stem](input_channels, variant.width)
        self.stages = nn.ModuleList(
            Stage(variant.convolutions, block, depth, channels, _feature_size(size, stride), **block_kwargs)
            for depth, channels, stride in zip(variant.encoder, self.output_channels, self.strides, strict=True)
        )
        self.merges = nn.ModuleList(PatchMerge(channels) for channels in self.output_channels[:-1])

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in, H, W) → features of each stage (B, H/stride, W/stride, C), highest resolution first.

        The skips of a convolutional stem, (B, C, H, W) and (B, C, H/2, W/2), precede them.
        """
        stem = self.stem(x)
        x = self.stages[0](stem[-1])
        features = [*stem[:-1], x]
        for merge, stage in zip(self.merges, self.stages[1:], strict=True):
            x = stage(merge(x))
            features.append(x)
        return features


class Decoder(nn.Module):
    """Five stages with a patch expand before all but the first, and segmentation layers.

    With a convolutional stem, convolutions replace the last stage and its expand.

    Segmentation layers are ordered from full resolution down. A network without deep supervision has only the first of
    them, but can load checkpoints of a network with deep supervision.

    Args:
        num_classes: Channels of the logits.
        size: Height and width of the image, multiples of 32.
        stem: Name of the encoder's stem.
        variant: Depths and width.
        block: Name of the basic block.
        deep_supervision: Whether to create and run segmentation layers below full resolution.
        block_kwargs: Further arguments of the block.
    """

    def __init__(
        self,
        num_classes: int,
        size: tuple[int, int],
        stem: str,
        variant: Variant,
        block: str,
        deep_supervision: bool,
        **block_kwargs: Any,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        channels = stage_channels = variant.decoder_channels
        self.upsampling: ConvUpsampling | None = None
        if stem == "conv":
            stage_channels = channels[:-1]
            self.upsampling = ConvUpsampling(variant.width)
            channels = [*stage_channels, self.upsampling.output_channels]
        factors = [upper // lower for upper, lower in itertools.pairwise(DECODER_STRIDES)]
        self.stages = nn.ModuleList(
            Stage(variant.convolutions, block, depth, c, _feature_size(size, stride), **block_kwargs)
            for depth, c, stride in zip(variant.decoder, stage_channels, DECODER_STRIDES, strict=False)
        )
        self.expands = nn.ModuleList(
            PatchExpand(before, after, factor)
            for (before, after), factor in zip(itertools.pairwise(stage_channels), factors, strict=False)
        )
        heads = [nn.Conv2d(c, num_classes, kernel_size=1) for c in reversed(channels)]
        self.seg_layers = nn.ModuleList(heads if deep_supervision else heads[:1])
        self.register_load_state_dict_pre_hook(_drop_auxiliary_heads)

    def forward(self, skips: list[Tensor]) -> list[Tensor]:
        """Features of the encoder → logits (B, classes, H/stride, W/stride), full resolution first.

        Without deep supervision the list holds only the full resolution.
        """
        fine, (*coarse, x) = skips[:-_LEVELS], skips[-_LEVELS:]
        x = self.stages[0](x)
        features = [x]
        for expand, stage, skip in zip(self.expands, self.stages[1:], reversed(coarse), strict=False):
            x = stage(expand(x) + skip)
            features.append(x)
        if self.upsampling is not None:
            features.append(self.upsampling(x, *fine))
        else:
            features.append(self.stages[-1](self.expands[-1](x)))
        outputs = len(features) if self.deep_supervision else 1
        return [
            _segment(layer, x)
            for layer, x in zip(self.seg_layers[:outputs], list(reversed(features))[:outputs], strict=False)
        ]


class MambaMIS(nn.Module):
    """Mamba-MIS (Wen et al.): encoder, AMFFB bridge and decoder of BSSS blocks.

    Args:
        input_channels: Channels of the image.
        num_classes: Channels of the logits.
        patch_size: Height and width of the images. Any size works, as the network pads images to multiples of 32.
            Spectral gates tie the weights to this size.
        variant: "S", "B" or "L" (the paper's), or "H": twice as wide, with convolutions and one block in each stage.
        d_state: States per channel of the scans.
        discretization: "zoh" (the paper's) or "mamba".
        block: "bsss" (the paper's), "cnn", "vit", or "nossm", which replaces all scans, even the bridge's, by depthwise
            convolutions.
        scan: "bfss" (the paper's) or "ss2d", in blocks and bridge alike.
        spectral_gate: Whether blocks have the spectral part.
        attention_bridge: Whether the bridge has the attention part.
        fusion_bridge: Whether the bridge has the multi-scale part.
        stem: "patch" (the paper's), or "conv": convolutions at full and half resolution, whose features become skips.
            With "conv", convolutions also replace the decoder's last stage.
        deep_supervision: Whether to return logits of every decoder stage.
        strides: None or `PLANS_STRIDES`, with the same result. nnU-Net's trainers derive the sizes of deep supervision
            from the plans' entry of this name, and pass all such entries to the network.

    Attributes:
        arguments: The arguments that define this network, as JSON values: all but `deep_supervision` and `strides`,
            which do not change the logits at full resolution.

    Raises:
        ValueError: An argument has an unsupported value, or block "nossm" is combined with a scan other than "bfss".
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        patch_size: tuple[int, int],
        variant: str = "B",
        d_state: int = 32,
        discretization: str = "zoh",
        block: str = "bsss",
        scan: str = "bfss",
        spectral_gate: bool = True,
        attention_bridge: bool = True,
        fusion_bridge: bool = True,
        stem: str = "patch",
        deep_supervision: bool = False,
        strides: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        _check_choice("variant", variant, VARIANTS)
        _check_choice("discretization", discretization, DISCRETIZATIONS)
        _check_choice("block", block, BLOCKS)
        _check_choice("scan", scan, SCANS)
        _check_choice("stem", stem, STEMS)
        if block == "nossm" and scan != "bfss":
            raise ValueError(f"block 'nossm' has no scans: leave out scan {scan!r}")
        if len(patch_size) != 2:
            raise ValueError(f"Mamba-MIS is a 2D network: patch_size must be (height, width), not {tuple(patch_size)}")
        if strides is not None and tuple(map(tuple, strides)) != PLANS_STRIDES:
            raise ValueError(f"the strides of Mamba-MIS are {PLANS_STRIDES} and cannot be changed to {strides}")
        if min(input_channels, num_classes, d_state, *patch_size) < 1:
            raise ValueError("input_channels, num_classes, d_state and patch_size must be at least 1")
        self.input_channels = input_channels
        height, width = self.patch_size = (int(patch_size[0]), int(patch_size[1]))
        self.arguments: dict[str, Any] = {
            "input_channels": input_channels,
            "num_classes": num_classes,
            "patch_size": [height, width],
            "variant": variant,
            "d_state": d_state,
            "discretization": discretization,
            "block": block,
            "scan": scan,
            "spectral_gate": spectral_gate,
            "attention_bridge": attention_bridge,
            "fusion_bridge": fusion_bridge,
            "stem": stem,
        }
        coarsest = ENCODER_STRIDES[-1]
        padded = (math.ceil(height / coarsest) * coarsest, math.ceil(width / coarsest) * coarsest)
        self.padding = (0, padded[1] - width, 0, padded[0] - height)
        scans: dict[str, Any] = {"d_state": d_state, "discretization": discretization}
        stages: dict[str, Any] = {"variant": VARIANTS[variant], "block": block, "scan": scan, **scans}
        stages["spectral_gate"] = spectral_gate
        self.encoder = Encoder(input_channels, padded, stem, **stages)
        self.bridge = AMFFB(
            self.encoder.output_channels,
            attention=attention_bridge,
            fusion=fusion_bridge,
            scan=NoSSM if block == "nossm" else SCANS[scan],
            **scans,
        )
        self.decoder = Decoder(num_classes, padded, stem, deep_supervision=deep_supervision, **stages)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(B, input_channels, *patch_size) → logits (B, num_classes, *patch_size).

        With deep supervision, return a list of logits: full resolution first, then about 1/4, 1/8, 1/16 and 1/32 of it
        (`deep_supervision_sizes`).

        Raises:
            ValueError: x has the wrong number of channels or the wrong size.
        """
        expected = (self.input_channels, *self.patch_size)
        if tuple(x.shape[1:]) != expected:
            raise ValueError(f"expected images (B, {', '.join(map(str, expected))}), not {tuple(x.shape)}")
        skips = self.encoder(F.pad(x, self.padding))
        fine, coarse = skips[:-_LEVELS], skips[-_LEVELS:]
        bridged = self.bridge(coarse)
        logits = self.decoder([*fine, *bridged[:-1], coarse[-1] + bridged[-1]])
        # padding is at the bottom and on the right, so the image is the upper left part
        sizes = deep_supervision_sizes(self.patch_size)
        cropped = [y[..., :height, :width] for y, (height, width) in zip(logits, sizes, strict=False)]
        return cropped if self.decoder.deep_supervision else cropped[0]


def deep_supervision_sizes(patch_size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the sizes of deep supervision's logits, full resolution first, rounded as nnU-Net rounds its targets."""
    return [
        (max(1, round(patch_size[0] / stride)), max(1, round(patch_size[1] / stride)))
        for stride in reversed(DECODER_STRIDES)
    ]


def _check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} {value!r} is not one of {', '.join(map(repr, choices))}")


def _feature_size(size: tuple[int, ...], stride: int) -> tuple[int, int]:
    return size[0] // stride, size[1] // stride


def _segment(layer: nn.Module, x: Tensor) -> Tensor:
    # features may be unnormalized sums of block outputs: half precision could overflow
    with no_autocast(x):
        return layer(at_least_float32(x).permute(0, 3, 1, 2))


def _drop_auxiliary_heads(decoder: Decoder, state_dict: dict, prefix: str, *_: Any) -> None:
    """Let a network without deep supervision load the weights of one trained with it."""
    if len(decoder.seg_layers) > 1:
        return
    heads = f"{prefix}seg_layers."
    for key in [key for key in state_dict if key.startswith(heads) and not key.startswith(f"{heads}0.")]:
        del state_dict[key]
