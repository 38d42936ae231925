"""`mamba_mis predict` on videos."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

from nnunet_mamba_mis.cli.main import main
from nnunet_mamba_mis.prediction import Predictor
from support.images import disc_image
from support.model_folders import UntrainedModel

av = pytest.importorskip("av")
RATE = 10


def write_video(path: Path, size: tuple[int, int], frames: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "0"})
        stream.height, stream.width = size
        stream.pix_fmt = "yuv444p"
        for number in range(frames):
            picture = np.moveaxis(disc_image(number, size, 9, (120, 60, 50), 70)[0], 0, -1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def rows(output: Path) -> list[str]:
    with (output / "summary.csv").open(newline="") as file:
        return [row["image"] for row in csv.DictReader(file)]


def predict(model: Path, source: Path, output: Path, *options: str) -> int:
    return main(["predict", "-m", str(model), "-i", str(source), "-o", str(output), "-device", "cpu", *options])


@pytest.mark.feature("Prediction", "videos, every frame or every Nth")
@pytest.mark.parametrize("size", [(48, 64), (37, 45)], ids=["even", "odd"])
@pytest.mark.parametrize("every", [1, 3])
def test_video_is_written_with_outlines_and_labels(model, tmp_path, size, every):
    clip, out = tmp_path / "clip.mp4", tmp_path / "out"
    write_video(clip, size, 7)
    assert predict(model("stock"), clip, out, "--every", str(every), "--save-labels") == 0
    given, drawn = frames_of(clip), frames_of(out / "clip_overlay.mp4")
    assert len(drawn) == 7 and drawn[0].shape == (*size, 3)
    assert np.abs(drawn[0].astype(int) - given[0]).max() > 50
    with av.open(str(out / "clip_overlay.mp4")) as container:
        assert float(container.duration / av.time_base) == pytest.approx(7 / RATE, abs=0.11)
    predicted = range(0, 7, every)
    assert rows(out) == [f"clip.mp4:{index}" for index in predicted]
    predictor = Predictor(model("stock"))
    for index in predicted:
        labels = imageio.imread(out / "clip_labels" / f"clip_{index:06d}.png")
        assert (labels == predictor.predict(given[index])).mean() > 0.999
    assert len(list((out / "clip_labels").iterdir())) == len(predicted)


def test_resumed_prediction_skips_finished_videos(model, tmp_path):
    clip, out = tmp_path / "clip.mp4", tmp_path / "out"
    write_video(clip, (32, 32), 2)
    assert predict(model("stock"), clip, out) == 0
    before = (out / "clip_overlay.mp4").stat().st_mtime_ns
    assert predict(model("stock"), clip, out, "--resume") == 0
    assert (out / "clip_overlay.mp4").stat().st_mtime_ns == before and len(rows(out)) == 2
    (out / "clip_overlay.mp4").unlink()
    assert predict(model("stock"), clip, out, "--resume") == 0
    assert len(rows(out)) == 2


@pytest.mark.parametrize("damage", ["noise", "empty", "truncated"])
def test_unreadable_video_is_reported(model, tmp_path, capsys, damage):
    clip, out = tmp_path / "clip.mkv", tmp_path / "out"
    write_video(clip, (32, 32), 40)
    whole = clip.read_bytes()
    clip.write_bytes({"noise": bytes(range(256)) * 9, "empty": b"", "truncated": whole[: len(whole) // 2]}[damage])
    status = predict(model("stock"), clip, out)
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    if damage == "truncated":
        # video players show the frames up to the damage, so these are predicted
        assert 0 < len(frames_of(out / "clip_overlay.mp4")) < 40
    else:
        assert status == 1 and str(clip) in errors and not (out / "clip_overlay.mp4").exists()


def test_video_for_another_kind_of_model_or_without_pyav_gives_a_one_line_error(model, tmp_path, capsys, monkeypatch):
    write_video(tmp_path / "clip.mp4", (32, 32), 2)
    other = UntrainedModel("nnUNetTrainer", channels=2).write(tmp_path / "model")
    assert predict(other, tmp_path / "clip.mp4", tmp_path / "out") == 1
    monkeypatch.setitem(sys.modules, "av", None)
    assert predict(model("stock"), tmp_path / "clip.mp4", tmp_path / "out") == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and "nnunet-mamba-mis[video]" in errors[1]
