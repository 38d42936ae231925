"""Compare the time of exported ONNX files with that of the network on a CPU, for one image and equal thread counts.

The script refuses to time a file whose logits differ from the network's by more than 1e-4.
"""

from __future__ import annotations

import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import openvino
import torch
from measure import describe_cpu, medians, print_table, write_json

from nnunet_mamba_mis.architectures import MambaMIS
from nnunet_mamba_mis.export.programs import write_onnx
from nnunet_mamba_mis.ops.memory import keep_freed_memory

BOUND = 3  # largest time in the faster runtime, relative to the network on native code


def onnxruntime_session(path: Path):
    """Load a file in onnxruntime, and return a function that runs it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image})[0]


def openvino_model(path: Path):
    """Load a file in OpenVINO for one image, and return a function that runs it."""
    core = openvino.Core()
    model = core.read_model(path)
    model.reshape([1, *list(model.input(0).partial_shape)[1:]])
    threads = torch.get_num_threads()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(model, "CPU", options).create_infer_request()
    return lambda image: request.infer([image])[0]


RUNTIMES = {"onnxruntime": onnxruntime_session, "openvino": openvino_model}


def native(network: MambaMIS, image: np.ndarray) -> np.ndarray:
    """Run the network on its native code."""
    with torch.no_grad():
        return network(torch.from_numpy(image)).numpy()


def compare(variant: str, size: int, folder: Path) -> dict:
    """Return the seconds of the network and of its exported file in each runtime."""
    torch.manual_seed(0)
    network = MambaMIS(3, 2, (size, size), variant=variant).eval()
    image = np.random.default_rng(0).standard_normal((1, 3, size, size)).astype(np.float32)
    path = folder / "network.onnx"
    start = time.perf_counter()
    write_onnx(network, path)
    export = time.perf_counter() - start
    candidates = {"native": partial(native, network, image)}
    expected = candidates["native"]()
    for name, load in RUNTIMES.items():
        candidates[name] = partial(load(path), image)
        difference = np.abs(candidates[name]() - expected).max()
        if not difference <= 1e-4 * max(1, np.abs(expected).max()):
            sys.exit(f"{variant} {size}² in {name} differs from the network by {difference:.1e}: no timings")
    return {"variant": variant, "size": size, "export": export, "seconds": medians(candidates, repeats=5)}


def main() -> None:
    """Print ratios and write them as JSON."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for variant, size in (("S", 256), ("B", 128), ("B", 256)):
            results.append(compare(variant, size, Path(folder)))
            print(".", end="", flush=True)
    rows = []
    for result in results:
        seconds = result["seconds"]
        ratios = [seconds[name] / seconds["native"] for name in RUNTIMES]
        reached = "yes" if min(ratios) <= BOUND else "no"
        name = f"{result['variant']} {result['size']}²"
        rows.append([name, f"{seconds['native']:.3f} s", *(f"{r:.2f}×" for r in ratios), reached])
    title = f"Exported ONNX files ({describe_cpu()}): time relative to the network on native code"
    print_table(title, ["", "native", *RUNTIMES, f"faster one ≤ {BOUND}×"], rows)
    write_json("exports", {"results": results})


if __name__ == "__main__":
    keep_freed_memory()
    main()
