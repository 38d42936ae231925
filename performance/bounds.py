"""The speed this project promises on a CPU, beside what scan.py and network.py have measured."""

from __future__ import annotations

import json

from measure import RESULTS, print_table


def main() -> None:
    """Read their JSON and print the table."""
    scan, network = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("scan", "network"))
    first = {r["what"]: r["seconds"] for r in scan["results"] if "loop" in r["seconds"]}
    ratios = {(r["size"], r["what"]): r["MambaMIS B"] / r["PlainConvUNet"] for r in network["results"]}
    seconds = {int(size): t for size, t in network["inference_seconds"].items()}
    rows = []

    def at_least(what: str, bound: float, measured: float) -> None:
        rows.append([what, f"≥ {bound:g}×", f"{measured:.0f}×", "yes" if measured >= bound else "no"])

    def at_most(what: str, bound: float, measured: float) -> None:
        rows.append([what, f"≤ {bound:g}×", f"{measured:.2f}×", "yes" if measured <= bound else "no"])

    for what, loop, chunked in (("forward", 1500, 25), ("forward, backward", 700, 15)):
        times = first[what]
        at_least(f"scan {what}: loop as in mamba_ssm's selective_scan_ref", loop, times["loop"] / times["cpp"])
        at_least(f"scan {what}: our reference loop", loop, times["reference"] / times["cpp"])
        at_least(f"scan {what}: our PyTorch path", chunked, times["torch"] / times["cpp"])
    for size in (256, 512):
        at_most(f"B inference {size}²: PlainConvUNet", 0.5, ratios[size, "inference"])
    at_most("B training step 256², batch 2: PlainConvUNet", 0.6, ratios[256, "training step"])
    at_most("B time a pixel 1024²: 256²", 1.15, seconds[1024] / 1024**2 / (seconds[256] / 256**2))
    at_most("B training peak memory 512², batch 2: PlainConvUNet", 1.0, ratios[512, "training step, peak memory"])
    print_table("Promised and measured", ["what: against which baseline", "bound", "measured", "reached"], rows)


if __name__ == "__main__":
    main()
