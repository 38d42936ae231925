"""Compare `mamba_mis predict` with nnU-Net's command on the same images on a CPU: installed commands, with mirroring.

nnU-Net's command is `nnUNetv2_predict_from_modelfolder`, which predicts like `nnUNetv2_predict`, but takes a model's
folder. The models have seeded, untrained weights. The script refuses to report times if predictions differ.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import torch
from measure import medians, print_table, write_json

from nnunet_mamba_mis.utils.subprocesses import find_executable

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from support.model_folders import UntrainedModel, plain_unet
from support.predictions import nnunet_predictor

# trainer → smallest speed-up over nnU-Net's command
MODELS = {"nnUNetTrainerMambaMIS": 4.0, "nnUNetTrainer": 1.5}
# number of images, their height and width, and the patch size of a plan for them
SETS = {"96 of 85 × 99": (96, (85, 99), (96, 96)), "20 of 512²": (20, (512, 512), (512, 512))}
FIRST_RESULT = 4.0  # largest time for a single image, in seconds
IN_PROCESS = 12  # number of images
DIFFERENT = 1e-4  # largest fraction of pixels that may differ


def write_images(folder: Path, number: int, size: tuple[int, int]) -> None:
    """Write images of smooth, coloured blobs in nnU-Net's naming."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for index in range(number):
        coarse = torch.from_numpy(rng.random((1, 3, 8, 8))).float()
        smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)[0]
        noisy = 230 * smooth.permute(1, 2, 0).numpy() + rng.integers(0, 25, (*size, 3))
        imageio.imwrite(folder / f"image{index:02d}_0000.png", noisy.astype(np.uint8))


def seconds_of(command: list[str], variables: dict[str, str]) -> float:
    """Return the wall-clock seconds of a command, including its startup."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | variables, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def check(ours: Path, theirs: Path) -> None:
    """Exit if predictions differ."""
    files = sorted(theirs.glob("*.png"))
    differing = np.mean([(imageio.imread(file) != imageio.imread(ours / file.name)).mean() for file in files])
    if not files or not differing <= DIFFERENT:
        sys.exit(f"a fraction of {differing:.1e} of the pixels differs from nnU-Net's: no timings")


def in_process(model: Path, images: Path) -> dict[str, float]:
    """Return the seconds per image of nnU-Net's and this package's predictor, without loading the model."""
    from nnunet_mamba_mis.prediction import Predictor

    files = sorted(images.glob("*.png"))[:IN_PROCESS]
    arrays = [imageio.imread(file) for file in files]
    theirs, ours = nnunet_predictor(model, [0]), Predictor(model)
    work = {
        "nnU-Net": lambda: theirs.predict_from_files_sequential([[str(file)] for file in files], None),
        "ours": lambda: list(ours.predict_many(arrays)),
    }
    with contextlib.redirect_stdout(io.StringIO()):
        return {name: seconds / len(files) for name, seconds in medians(work, repeats=1).items()}


def compare(trainer: str, what: str, folder: Path) -> dict:
    """Return the times of both commands, and of both predictors in process."""
    number, size, patch = SETS[what]
    images, model = folder / "images", folder / f"{trainer}__nnUNetPlans__2d"
    write_images(images, number, size)
    UntrainedModel(trainer, patch_size=patch, configuration={"architecture": plain_unet(patch)}).write(model)
    (folder / "one").mkdir()
    first = min(images.iterdir())
    (folder / "one" / first.name).write_bytes(first.read_bytes())
    options = ["-m", str(model), "-f", "0", "-device", "cpu"]
    cores = {"nnUNet_def_n_proc": str(os.cpu_count())}

    def ours(source: str, output: str) -> float:
        return seconds_of(
            [find_executable("mamba_mis"), "predict", *options, "-i", str(folder / source), "-o", str(folder / output)],
            {},
        )

    def theirs(source: str, output: str) -> float:
        return seconds_of(
            [
                find_executable("nnUNetv2_predict_from_modelfolder"),
                *options,
                "-i",
                str(folder / source),
                "-o",
                str(folder / output),
            ],
            cores,
        )

    result = {"trainer": trainer, "images": what, "first result": ours("one", "first")}
    result |= {"ours": ours("images", "ours"), "nnU-Net": theirs("images", "theirs")}
    check(folder / "ours", folder / "theirs")
    return result | ({"in process": in_process(model, images)} if number > IN_PROCESS * 2 else {})


def main() -> None:
    """Print times and ratios, and write them as JSON."""
    results = []
    for trainer in MODELS:
        for what in SETS:
            with tempfile.TemporaryDirectory() as folder:
                results.append(compare(trainer, what, Path(folder)))
            print(".", end="", flush=True)
    rows = []
    for result in results:
        ratio, bound = result["nnU-Net"] / result["ours"], MODELS[result["trainer"]]
        first = result["first result"]
        reached = "yes" if ratio >= bound and first <= FIRST_RESULT else "no"
        inside = [f"{seconds:.3f} s" for seconds in result.get("in process", {}).values()] or ["", ""]
        seconds = [f"{result[name]:.1f} s" for name in ("nnU-Net", "ours")]
        name = f"{result['trainer']}, {result['images']}"
        rows.append(
            [name, *seconds, f"{ratio:.1f}× (≥ {bound})", f"{first:.1f} s (≤ {FIRST_RESULT})", reached, *inside]
        )
    header = [
        "",
        "nnUNetv2_predict_from_modelfolder",
        "mamba_mis predict",
        "faster",
        "first result",
        "reached",
        "nnU-Net, per image",
        "ours, per image",
    ]
    print_table(
        f"Prediction, {torch.get_num_threads()} threads, with mirroring: commands, in process",
        header,
        rows,
    )
    write_json("prediction", {"results": results})


if __name__ == "__main__":
    main()
