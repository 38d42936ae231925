"""A file is written completely, or the one before stays."""

from __future__ import annotations

import io
import signal

import pytest
import torch

from nnunet_mamba_mis.utils.atomic_write import atomic_write


@pytest.mark.feature("Resuming", "Ctrl-C once, twice, or while a checkpoint is written; nohup")
def test_interrupted_file_is_no_full_disk(tmp_path):
    class Interrupted(io.BytesIO):
        def write(self, content):
            if self.tell() > 1000:
                signal.raise_signal(signal.SIGINT)
            return super().write(content)

    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "file.pth"):
        torch.save([torch.zeros(1000) for _ in range(9)], Interrupted())
    assert list(tmp_path.iterdir()) == []


def test_failure_leaves_the_previous_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(ValueError, match="broken"), atomic_write(path) as file:
        file.write(b"after")
        raise ValueError("broken")
    assert path.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_success_replaces_it(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with atomic_write(str(path)) as file:
        file.write(b"after")
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after" and [p.name for p in tmp_path.iterdir()] == ["file"]
