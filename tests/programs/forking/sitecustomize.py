"""Make pools fork in commands that have this folder in PYTHONPATH.

By default nnU-Net spawns workers, and each one imports torch and nnU-Net. `test_installed_commands` tests this default.
"""

import multiprocessing.context

multiprocessing.context._concrete_contexts["spawn"] = multiprocessing.get_context("fork")  # type: ignore[attr-defined]
