"""Contents of the files that describe a dataset: dataset.json and conversion_report.json."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nnunet_mamba_mis import __version__
from nnunet_mamba_mis.dataset_conversion.cases import CaseFacts
from nnunet_mamba_mis.dataset_conversion.check import Checked
from nnunet_mamba_mis.dataset_conversion.dataset import BinaryMask, Dataset
from nnunet_mamba_mis.dataset_conversion.options import Options
from nnunet_mamba_mis.dataset_conversion.plan import Plan
from nnunet_mamba_mis.dataset_conversion.sixteen_bits import report_entry

_TOOL = f"nnunet-mamba-mis {__version__}"


@dataclass(frozen=True)
class Names:
    """Names of source files as users know them, without the temporary folders that archives are unpacked to.

    Args:
        shown: The SOURCE that each searched folder stands for.
    """

    shown: Mapping[Path, Path] = field(default_factory=dict)

    def relative(self, path: Path) -> str:
        """Return a path that starts with the name of its SOURCE, without the folders above."""
        for folder, source in self.shown.items():
            start = os.path.abspath(folder)
            if os.path.commonpath([start, path]) == start:
                name = Path(os.path.abspath(source)).name
                return Path(name, os.path.relpath(path, start)).as_posix()
        return path.name

    def in_text(self, text: str) -> str:
        """Return a message with paths as the user gave them."""
        for folder, source in self.shown.items():
            text = text.replace(str(folder), str(source))
        return text

    def relative_in_text(self, text: str) -> str:
        """Return a message with paths that start at the name of their SOURCE."""
        for folder, source in self.shown.items():
            text = text.replace(os.path.abspath(folder), Path(os.path.abspath(source)).name)
        return text


def dataset_json(dataset: Dataset, name: str, num_training: int) -> str:
    """Return the content of dataset.json, which nnU-Net reads.

    Args:
        dataset: The converted dataset.
        name: The dataset's name without a prefix such as "Dataset027_".
        num_training: Number of training cases.
    """
    # nnU-Net's generate_dataset_json is not used: it writes the release to "citation"
    return _json(
        {
            "channel_names": {"0": "R", "1": "G", "2": "B"},
            "labels": dict(dataset.labels),
            "numTraining": num_training,
            "file_ending": ".png",
            "overwrite_image_reader_writer": "NaturalImage2DIO",
            "name": name,
            "description": dataset.title,
            "reference": "; ".join(filter(None, (dataset.reference, dataset.url))),
            "licence": dataset.licence,
            "converted_by": _TOOL,
        }
    )


def conversion_report(
    dataset: Dataset, options: Options, checked: Checked, plan: Plan, done: Sequence[list[str]], names: Names
) -> str:
    """Return the content of conversion_report.json.

    It depends on this package's version, on SOURCE's name and content and on the options, but not on the time, on
    SOURCE's parent folder or on the number of processes.

    Args:
        dataset: The converted dataset.
        options: The options of the conversion.
        checked: The contents of the source.
        plan: Where each case went, and the folds.
        done: Description of the changes to each case.
        names: Names of source files.
    """
    return _json(
        {
            "dataset": dataset.name,
            "converted_by": _TOOL,
            # only options that change the result
            "options": {name: value for name, value in asdict(options).items() if name not in ("dry_run", "overwrite")},
            "images": report_entry([facts.bits for facts in checked.facts]),
            "masks": {"rule": dataset.mask.rule}
            | ({"brightest": max(checked.level)} if isinstance(dataset.mask, BinaryMask) else {}),
            "splits": {
                "rule": plan.split_rule,
                "validation_cases": [len(split["val"]) for split in plan.splits],
                "groups": sorted(map(sorted, plan.groups)),
            },
            "warnings": plan.warnings,
            "duplicates": [list(pair) for pair in checked.duplicates],
            "number_of_cases": dict(sorted(Counter(plan.subset_of.values()).items())),
            "left_out": [
                {"identifier": problem.case, "kind": problem.kind, "why": names.relative_in_text(problem.text)}
                for problem in checked.problems
            ],
            "cases": [
                {
                    "identifier": facts.case.identifier,
                    "subset": plan.subset_of[facts.case.identifier],
                    "image": {
                        "file": names.relative(facts.case.image),
                        "sha256": facts.image_sha256,
                        "fingerprint": facts.fingerprint.hex(),
                    },
                    **_masks(facts, names),
                    "original_size": list(facts.size),
                    "done": what,
                }
                for facts, what in zip(checked.facts, done, strict=True)
            ],
        }
    )


def _masks(facts: CaseFacts, names: Names) -> dict[str, object]:
    first, *further = (
        {"file": names.relative(path), "sha256": sha256}
        for path, sha256 in zip(facts.case.masks, facts.masks_sha256, strict=True)
    )
    return {"mask": first, "further_masks": further} if further else {"mask": first}


def _json(content: Mapping[str, object]) -> str:
    # with \u for characters beyond ASCII: file names may contain bytes that are not valid text
    return json.dumps(content, indent=2) + "\n"
