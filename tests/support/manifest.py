"""Names that users and files rely on, as data: weights with their shapes, options of the commands, and trainers.

`python tests/support/manifest.py > tests/manifest.json` records them again. Run it only after adding a name.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import re
from pathlib import Path
from typing import Any

from nnunet_mamba_mis import trainers
from nnunet_mamba_mis.architectures import MambaMIS

FILE = Path(__file__).resolve().parents[1] / "manifest.json"
OURS = "nnUNetTrainerMambaMIS_"
VARIANTS = [*(f"{OURS}{name}" for name in ("S", "L", "conv", "conv_noSSM")), *trainers.ABLATIONS]
NETWORKS: dict[str, dict[str, Any]] = {"B": {}} | {
    name.removeprefix(OURS): getattr(trainers, name).architecture for name in VARIANTS
}
COMMANDS = [
    *("convert", "convert images", "demo", "plan", "doctor", "predict", "export"),
    *("benchmark run", "benchmark status", "benchmark report"),
]
LENGTHS = (1, 5, 10, 20, 50, 100, 250, 500)


def describe() -> dict[str, Any]:
    """Return the manifest of the installed package."""
    return {
        "weights": {name: _weights(name, arguments) for name, arguments in NETWORKS.items()},
        "options": {command: _options(command) for command in COMMANDS},
        "trainers": _trainers(),
    }


def _weights(name: str, arguments: dict[str, Any]) -> Any:
    """Return names and shapes of B's weights, merged over a stage's blocks; for other networks, a digest of both."""
    network = MambaMIS(3, 2, (64, 96), deep_supervision=True, **arguments)
    shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
    if name == "B":
        return {re.sub(r"blocks\.\d+", "blocks.*", key): shape for key, shape in shapes.items()}
    return hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest()


def _options(command: str) -> list[str]:
    main = importlib.import_module("nnunet_mamba_mis.cli.main").main
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([*command.split(), "--help"])
    return sorted(set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", text.getvalue().partition("options:")[2])))


def _trainers() -> list[str]:
    """Return the listed trainers, and each of them in every length of `LENGTHS`."""
    lengths = [f"{name}_{n}epoch{'s' if n > 1 else ''}" for name in trainers.__all__ for n in LENGTHS]
    return sorted(name for name in (*trainers.__all__, *lengths) if hasattr(trainers, name))


if __name__ == "__main__":
    described = describe()
    lines = []
    for kind in ("weights", "options"):
        entries = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in described[kind].items())
        lines.append(f' "{kind}": {{\n' + ",\n".join(entries) + "\n }")
    lines.append(f' "trainers": {json.dumps(described["trainers"])}')
    print("{\n" + ",\n".join(lines) + "\n}")
