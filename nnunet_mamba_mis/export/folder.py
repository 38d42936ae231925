"""Write the files of an export atomically, as one folder."""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from nnunet_mamba_mis.architectures import MambaMIS
from nnunet_mamba_mis.export.fold import TrainedFold
from nnunet_mamba_mis.export.programs import FORMATS, INPUT, OUTPUT
from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.text import one_line

DESCRIPTION = "network.json"
EXAMPLE = "predict_onnx.py"
# relative to the largest logit; LayerNorm over two nearly equal channels amplifies rounding at single pixels
_TYPICAL_DIFFERENCE, _LARGEST_DIFFERENCE = 1e-4, 1e-3


def write_folder(fold: TrainedFold, formats: list[str], output: Path) -> None:
    """Write each format, run it, compare it with the network, and move the complete folder into place.

    Args:
        fold: Fold to export.
        formats: Names in `FORMATS`.
        output: Folder to write; it must be empty or not exist.

    Raises:
        UserError: The outputs of a file differ from the network's, or the folder cannot be written.
    """
    output = output.absolute()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error}") from None
    try:
        description = fold.description | {"input": INPUT, "output": OUTPUT, "files": {}}
        for name in formats:
            description["files"][FORMATS[name].file] = _write(fold.network, name, partial)
        if "onnx" in formats:
            shutil.copyfile(Path(__file__).with_name(EXAMPLE), partial / EXAMPLE)
        (partial / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
        partial.chmod(0o755)  # mkdtemp lets only the owner in
        with suppress(FileNotFoundError):
            output.rmdir()  # Windows cannot replace a folder, not even an empty one
        partial.replace(output)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(one_line(f"{output}: {', '.join(sorted(file.name for file in output.iterdir()))}"))


def _write(network: MambaMIS, name: str, folder: Path) -> dict[str, Any]:
    """Write one format, compare it with the network, and return its entry in the description."""
    kind = FORMATS[name]
    print(f"{name}: writing {kind.file} (takes a minute or two) ...", flush=True)
    kind.write(network, folder / kind.file)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, network.input_channels, *network.patch_size, generator=generator)
    with torch.no_grad():
        expected = network(images)
    differences = (kind.run(folder / kind.file, images) - expected).abs()
    difference, largest = differences.max().item(), expected.abs().max().item()
    typical = (differences <= _TYPICAL_DIFFERENCE * max(1.0, largest)).float().mean().item()
    print(
        f"{name}: logits differ from the network's by at most {difference:.1e} (largest logit: {largest:.1f})",
        flush=True,
    )
    if not (difference <= _LARGEST_DIFFERENCE * max(1.0, largest) and typical >= 0.999):
        raise UserError(
            f"the logits of {kind.file} differ from the network's by up to {difference:.3g}, so nothing was exported: "
            "please report this with the output of mamba_mis doctor"
        )
    return {"largest_difference": difference, "torch": torch.__version__}
