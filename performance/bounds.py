"""Compare the speed that this project promises on a CPU, and its goals, with the measurements of the other scripts."""

from __future__ import annotations

import json
import sys

from measure import RESULTS, print_table


def at_least(what: str, bound: float, measured: float, digits: int = 0) -> list[str]:
    """Return the table row of a ratio that should be at least `bound`."""
    return [what, f"≥ {bound:g}×", f"{measured:.{digits}f}×", "yes" if measured >= bound else "no"]


def at_most(what: str, bound: float, measured: float, unit: str = "×", digits: int = 2) -> list[str]:
    """Return the table row of a ratio or a time that should be at most `bound`."""
    return [what, f"≤ {bound:g}{unit}", f"{measured:.{digits}f}{unit}", "yes" if measured <= bound else "no"]


def main() -> None:
    """Read the JSON files of the other scripts and print the tables."""
    files = (RESULTS / f"{name}.json" for name in ("scan", "network", "threads", "prediction"))
    scan, network, threads, prediction = (json.loads(file.read_text()) for file in files)
    sets = {measured["machine"]["instruction_set"] for measured in (scan, network, threads, prediction)}
    instruction_set, *others = sets
    if others:
        sys.exit(f"{RESULTS} mixes results of several instruction sets ({', '.join(sets)}): run `make bench` again")
    scans = {r["what"]: r["seconds"] for r in scan["results"] if "loop" in r["seconds"]}
    networks = {(r["what"], r["size"], r["batch"]): r for r in network["results"]}
    ratios = {setup: r["MambaMIS B patch"] / r["PlainConvUNet"] for setup, r in networks.items()}
    seconds = {int(size): t for size, t in network["inference_seconds"].items()}

    promised = []
    for what, loop, chunked in (("forward", 1500, 25), ("forward, backward", 700, 15)):
        times = scans[what]
        promised += [
            at_least(f"scan {what}: loop as in mamba_ssm's selective_scan_ref", loop, times["loop"] / times["cpp"]),
            at_least(f"scan {what}: backend reference", loop, times["reference"] / times["cpp"]),
            at_least(f"scan {what}: backend torch", chunked, times["torch"] / times["cpp"]),
        ]
    for size in (256, 512):
        promised.append(at_most(f"B inference {size}²: PlainConvUNet", 0.5, ratios["inference", size, 1]))
    promised += [
        at_most("B training step 256² × 2: PlainConvUNet", 0.6, ratios["training step", 256, 2]),
        at_most("B time per pixel 1024²: 256²", 1.15, seconds[1024] / 1024**2 / (seconds[256] / 256**2)),
        at_most("B training peak memory 512² × 2: PlainConvUNet", 1.0, ratios["peak memory", 512, 2]),
    ]

    goals = [at_most("scan forward (1, 8, 65536), N = 32", 5, scans["forward"]["cpp"] * 1e3, " ms", 1)]
    for size, batch, bound in ((96, 4, 0.35), (128, 2, 0.4), (128, 8, 0.33), (256, 2, 0.3)):
        what = f"B training step {size}² × {batch}: PlainConvUNet"
        goals.append(at_most(what, bound, ratios["training step", size, batch]))
    goals += [
        at_most("B inference 96² × 1", 30, networks["inference", 96, 1]["MambaMIS B patch"] * 1e3, " ms", 0),
        at_most("B inference 256² × 1: PlainConvUNet", 0.25, ratios["inference", 256, 1]),
    ]
    for r in threads["results"]:
        what = f"B training step {r['size']}² × {r['batch']}, threads {r['policy']}: one thread"
        goals.append(at_least(what, 1.7, r["seconds"]["1"] / r["seconds"]["2"], 2))
    small = prediction["results"][0]
    what = f"B, {small['images']}, mirroring"
    goals += [
        at_most(f"{what}, one image in process", 0.12, small["in process"]["ours"], " s", 3),
        at_most(f"{what}: `mamba_mis predict`", 16, small["ours"], " s", 1),
    ]

    header = ["what: against which baseline", "bound", "measured", "reached"]
    print_table(f"Promised and measured ({instruction_set})", header, promised)
    print_table(f"Goals for two cores with AVX2, and measured ({instruction_set})", header, goals)


if __name__ == "__main__":
    main()
