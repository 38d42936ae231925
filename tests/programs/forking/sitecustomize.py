"""Make pools fork in commands that have this folder in PYTHONPATH.

nnU-Net would spawn them, and each worker would import torch and nnU-Net, as `test_installed_commands` tests it.
"""

import multiprocessing.context

multiprocessing.context._concrete_contexts["spawn"] = multiprocessing.get_context("fork")  # type: ignore[attr-defined]
