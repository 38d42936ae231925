"""Print, as JSON, which trainer nnU-Net finds for each name.

A row has the trainer's module, the trainer's name, whether `nnunet_mamba_mis.trainers` has the same class under that
name, and the package's file.
"""

import contextlib
import io
import json
import sys

from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

with contextlib.redirect_stdout(io.StringIO()):
    classes = [recursive_find_trainer_class_by_name(name) for name in sys.argv[1:]]
rows = []
for trainer in classes:
    ours = sys.modules.get("nnunet_mamba_mis.trainers")
    same = getattr(ours, trainer.__name__, None) is trainer
    rows.append(
        [trainer.__module__, trainer.__name__, same, getattr(sys.modules.get("nnunet_mamba_mis"), "__file__", "")]
    )
print(json.dumps(rows))
