"""Check the installation: package versions, scan backends, and whether nnU-Net finds the trainers. Suggest fixes.

The exit status is 1 if there is a problem that prevents training.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no arguments."""


def run(_args: argparse.Namespace) -> int:
    """Print each finding as soon as it is known; return 1 if there is a problem."""
    from nnunet_mamba_mis.installation import WRONG, inspect_installation
    from nnunet_mamba_mis.utils.text import for_terminal

    wrong = 0
    for title, findings in inspect_installation():
        print(title, flush=True)
        for finding in findings:
            print(for_terminal(f"  {finding.status:5}  {finding.text}"))
            if finding.remedy:
                print(for_terminal(f"         → {finding.remedy}"))
            wrong += finding.status == WRONG
    problems = f"{wrong} problem{'s' * (wrong != 1)} found."
    print(f"\n{problems}" if wrong else "\nReady to train.")
    return 1 if wrong else 0
