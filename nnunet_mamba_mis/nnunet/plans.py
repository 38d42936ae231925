"""Plans files, and their entry from which nnU-Net and this package's trainers build the network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from nnunet_mamba_mis.nnunet.records import FileName, Record, check_json, read_record

NETWORK_CLASS = "nnunet_mamba_mis.architectures.MambaMIS"
# arguments in plans that only nnU-Net needs; this package's trainers set them themselves
_NOT_ARCHITECTURE = {"patch_size", "strides", "deep_supervision"}

# nnU-Net's own plans inherit over one step
_LONGEST_ANCESTRY = 20

_Size = tuple[Annotated[int, Field(ge=1, le=10**6)], ...]


class Architecture(Record):
    """The network of a configuration."""

    network_class_name: str = ""
    arch_kwargs: dict[str, Any] = Field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `MambaMIS`; empty for another network."""
        if self.network_class_name != NETWORK_CLASS:
            return {}
        stated = {name: value for name, value in self.arch_kwargs.items() if name not in _NOT_ARCHITECTURE}
        return {"stem": "patch"} | stated


class Configuration(Record):
    """A configuration, or its additions to the configuration that it inherits from."""

    inherits_from: str | None = None
    previous_stage: str | None = None
    data_identifier: FileName | None = None
    preprocessor_name: str | None = None
    batch_size: Annotated[int, Field(ge=1, le=10**6)] | None = None
    patch_size: Annotated[_Size, Field(min_length=2, max_length=3)] | None = None
    spacing: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    normalization_schemes: tuple[str, ...] | None = None
    use_mask_for_norm: tuple[bool, ...] | None = None
    architecture: Architecture = Architecture()  # plans of old versions have none

    @property
    def network_class(self) -> str:
        """Dotted name of the network; empty in plans of old versions."""
        return self.architecture.network_class_name


class Plans(Record):
    """The parts of a plans file that this package reads."""

    plans_name: str | None = None
    dataset_name: str | None = None
    transpose_forward: tuple[int, ...] | None = None
    label_manager: str | None = None
    foreground_intensity_properties_per_channel: dict[str, dict[str, float]] | None = None
    configurations: dict[str, Configuration]

    @model_validator(mode="after")
    def _check_inheritance(self) -> Plans:
        for name in self.configurations:
            self._ancestry(name)
        return self

    def configuration(self, name: str) -> Configuration:
        """Return one of the configurations, with what it inherits."""
        merged: dict[str, Any] = {}
        for ancestor in reversed(self._ancestry(name)):
            merged |= self.configurations[ancestor].as_json()
        return Configuration.model_validate_json(json.dumps(merged))

    def _ancestry(self, name: str) -> list[str]:
        """Return the names of the configuration and of those that it inherits from."""
        names = [name]
        while (parent := self.configurations[names[-1]].inherits_from) is not None:
            if parent in names:
                raise ValueError(f"configurations.{name} inherits from itself")
            if parent not in self.configurations:
                raise ValueError(f"configurations.{name} inherits from {parent!r}, which does not exist")
            if len(names) == _LONGEST_ANCESTRY:
                raise ValueError(f"configurations.{name} inherits over more than {_LONGEST_ANCESTRY} steps")
            names.append(parent)
        return names


def read_plans(path: Path) -> Plans:
    """Return the content of a plans file.

    Raises:
        UserError: The file is missing, incomplete or not a plans file; the message names it and the way out.
    """
    return read_record(path, Plans, "remove it, and plan again")


def check_plans(content: Mapping[str, Any]) -> Plans:
    """Check plans that nnU-Net has read, and return them.

    Raises:
        UserError: Values are missing or have wrong types; the message names the key.
    """
    name = str(content.get("plans_name"))
    return check_json(json.dumps(content), Plans, f"plans {name!r:.100} cannot be used")


def architecture_entry(patch_size: tuple[int, int], variant: str, stem: str = "patch") -> dict[str, Any]:
    """Return a configuration's entry `architecture`, from which nnU-Net's own trainers build Mamba-MIS."""
    from nnunet_mamba_mis.architectures.mamba_mis import PLANS_STRIDES  # torch takes seconds to import

    strides = [list(stride) for stride in PLANS_STRIDES]
    kwargs = {"patch_size": list(patch_size), "variant": variant, "strides": strides}
    # plans of older versions have no stem: omit the paper's stem, so that new plans equal them
    if stem != "patch":
        kwargs["stem"] = stem
    return {"network_class_name": NETWORK_CLASS, "arch_kwargs": kwargs, "_kw_requires_import": []}
