"""In PYTHONPATH: pools of commands are forked.

nnU-Net would spawn them, and each worker would import torch and nnU-Net. `test_installed_commands` runs it that way.
"""

import multiprocessing.context

multiprocessing.context._concrete_contexts["spawn"] = multiprocessing.get_context("fork")  # type: ignore[attr-defined]
