"""Run an exported program in a process that cannot import this package: `python … PROGRAM IMAGES pt2|aoti`.

IMAGES holds images and the network's logits for them. The program prints the largest difference.
"""

import sys

sys.modules["nnunet_mamba_mis"] = None  # type: ignore[assignment]  # makes the import fail

import torch  # noqa: E402

program, file, kind = sys.argv[1:]
images, expected = torch.load(file)
if kind == "pt2":
    logits = torch.export.load(program).module()(images)
else:
    logits = torch._inductor.aoti_load_package(program)(images)
print((logits - expected).abs().max().item())
