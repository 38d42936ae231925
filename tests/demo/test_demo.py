"""`mamba_mis demo`: its synthetic polyps, its folder, how it runs commands, its scores and its report."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnunet_mamba_mis.benchmark.evaluation.metrics import Counts
from nnunet_mamba_mis.cli import main as cli
from nnunet_mamba_mis.dataset_conversion import DATASETS
from nnunet_mamba_mis.demo.folder import MARKER, check_folder, start_afresh
from nnunet_mamba_mis.demo.nnunet_steps import Workplace, convert_step, plan_step, predict_step, train_step
from nnunet_mamba_mis.demo.pictures import draw_overlays, draw_training_curve
from nnunet_mamba_mis.demo.report import RunStep, console_table, exports, write_report
from nnunet_mamba_mis.demo.scoring import Score, score_folders, score_masks, summarize
from nnunet_mamba_mis.demo.steps import Step, as_typed, run_step
from nnunet_mamba_mis.demo.synthetic_polyps import draw_case, write_synthetic_set
from nnunet_mamba_mis.nnunet.logs import Epoch, read_epochs
from nnunet_mamba_mis.utils.errors import UserError

# as nnU-Net 2.8.1 prints it, with NumPy 2
NNUNET_OUTPUT = """\
2025-11-23 10:00:00.000001: Epoch 0
2025-11-23 10:00:00.000002: Current learning rate: 0.001
2025-11-23 10:00:47.000001: train_loss -0.1234
2025-11-23 10:00:47.000002: val_loss 0.05
2025-11-23 10:00:47.000003: Pseudo dice [np.float32(0.4321)]
2025-11-23 10:00:47.000004: Epoch time: 47.12 s
2025-11-23 10:00:47.000005: Yayy! New best EMA pseudo Dice: 0.4321
2025-11-23 10:00:48.000001:
2025-11-23 10:00:48.000002: Epoch 1
2025-11-23 10:01:30.000001: train_loss -0.4
2025-11-23 10:01:30.000002: val_loss -0.35
2025-11-23 10:01:30.000003: Pseudo dice [nan]
2025-11-23 10:01:30.000004: Epoch time: 42.0 s
"""


# ------------------------------------------------------------------------------------------- synthetic polyps


def test_synthetic_set_is_the_same_each_time_whatever_its_size(tmp_path):
    write_synthetic_set(tmp_path / "a", 3)
    write_synthetic_set(tmp_path / "b", 2)
    names = sorted(path.relative_to(tmp_path / "b") for path in (tmp_path / "b").rglob("*.jpg"))
    assert len(names) == 4
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_another_seed_gives_another_set(tmp_path):
    write_synthetic_set(tmp_path / "a", 1, seed=0)
    write_synthetic_set(tmp_path / "b", 1, seed=1)
    (first,), (other,) = ((tmp_path / name / "images").iterdir() for name in "ab")
    assert first.read_bytes() != other.read_bytes()


def test_synthetic_set_has_the_layout_and_the_noisy_masks_of_kvasir_seg(tmp_path):
    write_synthetic_set(tmp_path, 4)
    cases = DATASETS["kvasir-seg"].find_cases([tmp_path])
    assert len(cases) == 4
    values = set()
    for i, case in enumerate(sorted(cases, key=lambda case: case.identifier)):
        image, mask = np.asarray(Image.open(case.image)), np.asarray(Image.open(case.mask))
        assert image.shape == mask.shape and image.shape[2] == 3
        values |= set(np.unique(mask).tolist())
        _, drawn = draw_case(np.random.default_rng([0, i]))
        np.testing.assert_array_equal(mask.max(axis=2) > 127, drawn)
    assert {0, 255} < values, "compression noise"


@pytest.mark.parametrize("i", range(6))
def test_a_synthetic_image_has_a_polyp_that_no_threshold_of_brightness_finds(i):
    image, mask = draw_case(np.random.default_rng([0, i]))
    assert 0.02 < mask.mean() < 0.5
    grey = image.mean(axis=2)
    for threshold in range(10, 250, 10):
        for guess in (grey > threshold, grey <= threshold):
            assert score_masks("", mask, guess).dice < 0.85


# ------------------------------------------------------------------------------------------- the output folder


def test_a_foreign_folder_is_refused_and_stays_as_it_is(tmp_path, capsys):
    (tmp_path / "nnUNet_raw").mkdir()
    (tmp_path / "nnUNet_raw" / "precious.txt").write_text("mine")
    assert cli.main(["demo", "-o", str(tmp_path), "-device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert str(tmp_path) in error and "-o" in error
    assert [path.name for path in tmp_path.iterdir()] == ["nnUNet_raw"]
    assert (tmp_path / "nnUNet_raw" / "precious.txt").read_text() == "mine"


def test_a_file_as_output_folder_is_refused(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("mine")
    assert cli.main(["demo", "-o", str(file)]) == 1
    assert "not a folder" in capsys.readouterr().err
    assert file.read_text() == "mine"


def test_an_earlier_demo_is_replaced_but_other_files_in_its_folder_stay(tmp_path):
    folder = tmp_path / "new" / "demo"
    check_folder(folder, None)
    start_afresh(folder)
    (folder / "nnUNet_results" / "old").mkdir()
    (folder / "report.md").write_text("old")
    (folder / "notes.txt").write_text("mine")
    check_folder(folder, None)
    start_afresh(folder)
    assert not (folder / "nnUNet_results" / "old").exists() and not (folder / "report.md").exists()
    assert (folder / "notes.txt").read_text() == "mine" and (folder / MARKER).is_file()


def test_a_link_in_an_earlier_demo_is_removed_but_not_what_it_points_to(tmp_path):
    start_afresh(tmp_path / "demo")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious.txt").write_text("mine")
    (tmp_path / "demo" / "predictions").symlink_to(tmp_path / "elsewhere")
    start_afresh(tmp_path / "demo")
    assert (tmp_path / "elsewhere" / "precious.txt").read_text() == "mine"
    assert not (tmp_path / "demo" / "predictions").is_symlink()


@pytest.mark.parametrize(
    ("source", "folder"), [("a", "a"), ("a", "a/b"), ("a/b", "a")], ids=["same", "out in", "in out"]
)
def test_source_and_output_folder_must_lie_apart(tmp_path, source, folder):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / MARKER).touch()
    with pytest.raises(UserError, match="lies in"):
        check_folder(tmp_path / folder, tmp_path / source)


@pytest.mark.parametrize(
    ("number", "message"), [(None, "does not exist"), (0, "found no folder"), (4, "4 images: at least 6")]
)
def test_an_unusable_source_is_refused_before_anything_is_written(tmp_path, capsys, number, message):
    if number is not None:
        write_synthetic_set(tmp_path / "source", number)
    out = tmp_path / "out"
    assert cli.main(["demo", "-i", str(tmp_path / "source"), "-o", str(out), "-device", "cpu"]) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


# ------------------------------------------------------------------------------------------- running commands


def python_step(code: str, **kwargs) -> Step:
    return Step("fake", "Pretend", ["python", "-c", textwrap.dedent(code)], **kwargs)


def test_a_step_shows_its_command_logs_its_output_and_reports_lines(tmp_path, capsys):
    code = """
    import os
    print("epoch", os.environ["nnUNet_raw"], os.environ["ONLY_HERE"])
    print("tail", end="")
    """
    seen = []
    step = python_step(
        code,
        remark="why",
        environment={"ONLY_HERE": "b c"},
        watch=lambda line: seen.append(line) or ("shown" if "epoch" in line else None),
    )
    seconds = run_step(step, tmp_path / "fake.log", {"nnUNet_raw": "here"})
    output = capsys.readouterr().out
    assert "# why\n" in output and "$ ONLY_HERE='b c' python -c" in output and "  shown\n" in output
    assert seen == ["epoch here b c"]
    assert (tmp_path / "fake.log").read_text() == "epoch here b c\ntail"
    assert "ONLY_HERE" not in os.environ
    assert 0 < seconds < 30


def test_lines_are_reported_while_the_command_runs(tmp_path):
    arrived = []
    step = python_step(
        "import time; print('first'); time.sleep(2.5)", watch=lambda line: arrived.append(time.monotonic())
    )
    run_step(step, tmp_path / "fake.log", {})
    assert time.monotonic() - arrived[0] > 1.2


def test_a_failing_step_names_itself_and_shows_the_end_of_its_log(tmp_path):
    code = """
    import sys
    for i in range(40):
        print("line", i)
    print("10%\\r20%", file=sys.stderr)
    sys.exit("out of luck")
    """
    log = tmp_path / "fake.log"
    with pytest.raises(UserError) as failure:
        run_step(python_step(code), log, {})
    text = str(failure.value)
    assert "step 'Pretend' failed (exit status 1)" in text and str(log) in text
    lines = [line.removeprefix("  | ") for line in text.splitlines() if line.startswith("  | ")]
    assert lines == [*(f"line {i}" for i in range(27, 40)), "20%", "out of luck"]


def test_a_step_that_was_killed_says_so(tmp_path):
    with pytest.raises(UserError, match="signal 9, perhaps for want of memory"):
        run_step(python_step("import os; os.kill(os.getpid(), 9)"), tmp_path / "fake.log", {})


def test_a_command_that_is_not_installed_is_named(tmp_path):
    with pytest.raises(UserError, match="nnUNetv2_no_such_command"):
        run_step(Step("fake", "Pretend", ["nnUNetv2_no_such_command"]), tmp_path / "fake.log", {})


def test_a_failing_child_ends_the_demo_with_exit_status_1(tmp_path, capsys):
    # images that are only found to be broken while they are converted, in a child
    write_synthetic_set(tmp_path / "source", 6)
    image = tmp_path / "source" / "images" / "polyp_003.jpg"
    image.write_bytes(b"")
    out = tmp_path / "out"
    assert cli.main(["demo", "-i", str(tmp_path / "source"), "-o", str(out), "-device", "cpu"]) == 1
    captured = capsys.readouterr()
    assert "step 'Convert to nnU-Net's format' failed" in captured.err
    assert "polyp_003.jpg" in captured.err and str(out / "logs" / "1_convert.log") in captured.err
    assert f"export nnUNet_raw={out}/nnUNet_raw" in captured.out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "kill"])
def test_an_interrupt_ends_the_command_and_its_workers(tmp_path, number):
    # a command whose worker ignores the first signal, run by a process of its own
    demo = f"""
    from pathlib import Path
    from nnunet_mamba_mis.demo.steps import Step, run_step

    worker = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready'); time.sleep(60)"
    code = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {{worker!r}}]); print(p.pid); p.wait()"
    run_step(Step("fake", "Pretend", ["python", "-c", code]), Path({str(tmp_path / "log")!r}), {{}})
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(demo)], stderr=subprocess.PIPE, text=True)
    log = tmp_path / "log"
    deadline = time.monotonic() + 30
    while not (log.exists() and "ready" in log.read_text()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in error
    worker = int(re.search(r"^\d+$", log.read_text(), re.MULTILINE)[0])
    deadline = time.monotonic() + 10
    while _is_running(worker):
        assert time.monotonic() < deadline, "the worker goes on"
        time.sleep(0.05)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # whoever adopts it may be slow to reap it
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] == "Z")


# ------------------------------------------------------------------------------------------- the commands


@pytest.fixture
def place(tmp_path) -> Workplace:
    place = Workplace(tmp_path / "out", "Tiny", "cpu", cores=2)
    for name in ("imagesTr", "imagesTs", "labelsTs"):
        (place.raw / name).mkdir(parents=True)
    return place


def save_image(path: Path, width: int, height: int) -> None:
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)


def test_conversion_keeps_images_apart(tmp_path, capsys):
    write_synthetic_set(tmp_path / "it's a set", 6)
    place = Workplace(tmp_path / "out", "Tiny", "cpu", cores=2)
    start_afresh(place.folder)
    run_step(convert_step(place, tmp_path / "it's a set", 2), tmp_path / "log", place.environment())
    assert len(list((place.raw / "imagesTr").iterdir())) == 4
    assert len(list((place.raw / "imagesTs").iterdir())) == len(list((place.raw / "labelsTs").iterdir())) == 2


def test_large_images_are_planned_at_a_lower_resolution_on_a_cpu_only(place):
    for i, width in enumerate((320, 640, 1920)):
        save_image(place.raw / "imagesTr" / f"{i}_0000.png", width, 300)
    assert "-overwrite_target_spacing 999 4.0 4.0" in as_typed(plan_step(place))
    on_gpu = Workplace(place.folder, "Tiny", "cuda", cores=16)
    assert as_typed(plan_step(on_gpu)) == "nnUNetv2_plan_and_preprocess -d 900 -c 2d --verify_dataset_integrity"


def test_small_images_keep_their_resolution(place):
    save_image(place.raw / "imagesTr" / "0_0000.png", 100, 90)
    assert "-overwrite_target_spacing" not in as_typed(plan_step(place))


def test_training_and_prediction_use_the_demo_trainer_and_the_device(place):
    train, predict = as_typed(train_step(place, 8)), as_typed(predict_step(place))
    assert train == "nnUNet_n_proc_DA=0 nnUNetv2_train 900 2d 0 -tr nnUNetTrainerMambaMIS_demo -device cpu"
    assert f"-i {place.raw}/imagesTs -o {place.folder}/predictions" in predict and predict.startswith(
        "nnUNetv2_predict"
    )
    assert "-tr nnUNetTrainerMambaMIS_demo -device cpu" in predict


def test_exports_can_be_pasted_into_a_shell():
    assert exports({"nnUNet_raw": "/my data"}) == ["export nnUNet_raw='/my data'"]


def test_each_epoch_becomes_one_line(place):
    watch = train_step(place, 8).watch
    shown = [line for line in map(watch, NNUNET_OUTPUT.splitlines()) if line is not None]
    assert len(shown) == 2
    assert re.fullmatch(
        r"epoch 1/8  train loss -0\.123  val loss  0\.050  pseudo Dice 0\.432  47 s, about 5 min 30 s left", shown[0]
    )
    assert shown[1].startswith("epoch 2/8") and "about 4 min 12 s left" in shown[1]


def test_epochs_are_read_from_nnunets_log():
    first, second = read_epochs(NNUNET_OUTPUT.splitlines())
    assert first == Epoch(0, -0.1234, 0.05, (0.4321,), 47.12)
    assert math.isnan(second.pseudo_dice) and second.train_loss == -0.4


# ------------------------------------------------------------------------------------------- scores and report


def mask_of(*rows: str) -> np.ndarray:
    return np.array([[character == "#" for character in row] for row in rows])


@pytest.mark.parametrize(
    ("truth", "prediction", "dice", "iou"),
    [
        (["##..", "##.."], ["##..", "##.."], 1.0, 1.0),
        (["##..", "##.."], [".##.", ".##."], 0.5, 1 / 3),
        (["##..", "##.."], ["..##", "..##"], 0.0, 0.0),
        (["##..", "##.."], ["....", "...."], 0.0, 0.0),
        (["....", "...."], ["#...", "...."], 0.0, 0.0),
    ],
    ids=["equal", "half", "apart", "missed", "false alarm"],
)
def test_dice_and_iou(truth, prediction, dice, iou):
    score = score_masks("case", mask_of(*truth), mask_of(*prediction))
    assert score.defined and (score.dice, score.iou) == pytest.approx((dice, iou))


def test_empty_on_both_sides_has_no_dice_and_is_counted_apart():
    scores = [Score("a", Counts(10, 0, 0, 5)), Score("b", Counts(5, 5, 5, 0)), Score("c", Counts(0, 0, 0, 15))]
    assert not scores[2].defined and math.isnan(scores[2].dice) and math.isnan(scores[2].iou)
    summary = summarize(scores)
    assert summary.dice_mean == pytest.approx(0.75) and summary.dice_sd == pytest.approx(0.3536, abs=1e-4)
    assert (summary.images, summary.both_empty) == (3, 1)
    table = console_table(scores, summary)
    assert "1 without polyp" in table and "0.750 ± 0.354" in table


def test_masks_of_different_shape_are_an_error():
    with pytest.raises(ValueError, match="case: ground truth has shape"):
        score_masks("case", np.zeros((2, 3), bool), np.zeros((3, 2), bool))


def test_a_long_table_shows_both_ends_in_at_most_100_columns():
    scores = [Score("x" * 70 + str(i), Counts(i, 100 - i, 100 - i, 0)) for i in range(100)]
    lines = console_table(scores, summarize(scores)).splitlines()
    assert len(lines) < 30 and max(map(len, lines)) <= 100
    assert "76 more in report.md" in "\n".join(lines)


@pytest.fixture
def results(place) -> Workplace:
    """Three unseen images: one polyp found in part, one at the border found whole, one image without polyp."""
    place.predictions.mkdir()
    truths, predictions = np.zeros((3, 20, 30), np.uint8), np.zeros((3, 20, 30), np.uint8)
    truths[0, 5:15, 5:15] = predictions[0, 5:15, 10:20] = 1
    truths[1, :8, :8] = predictions[1, :8, :8] = 1
    for name, truth, prediction in zip("abc", truths, predictions, strict=True):
        save_image(place.raw / "imagesTs" / f"{name}_0000.png", 30, 20)
        Image.fromarray(truth).save(place.raw / "labelsTs" / f"{name}.png")
        Image.fromarray(prediction).save(place.predictions / f"{name}.png")
    return place


def test_folders_are_scored_worst_first_and_images_without_polyp_last(results):
    scores = score_folders(results.raw / "labelsTs", results.predictions)
    assert [(score.identifier, score.defined) for score in scores] == [("a", True), ("b", True), ("c", False)]
    assert [score.dice for score in scores[:2]] == [0.5, 1.0]


def test_a_missing_prediction_is_named(results):
    (results.predictions / "b.png").unlink()
    with pytest.raises(UserError, match=r"b\.png is missing"):
        score_folders(results.raw / "labelsTs", results.predictions)


def test_report_and_pictures_are_written(results):
    labels = results.raw / "labelsTs"
    scores = score_folders(labels, results.predictions)
    out = results.folder
    draw_overlays(scores, results.raw / "imagesTs", labels, results.predictions, out / "overlays.png")
    draw_training_curve(list(read_epochs(NNUNET_OUTPUT.splitlines())), out / "training_curve.png")
    done = [RunStep(train_step(results, 8), 61.0), RunStep(predict_step(results), 2.0)]
    write_report(out / "report.md", "Data.", "a CPU", ["export a=b"], done, scores, summarize(scores))

    text = (out / "report.md").read_text(encoding="utf-8")
    assert "Mean Dice **0.750**" in text and "| a | 0.500 | 0.333 |" in text and "| c | no polyp | none found |" in text
    assert "| Train Mamba-MIS | 1 min 01 s |" in text and as_typed(done[1].step) in text and "export a=b" in text
    for name in re.findall(r"\]\((\S+\.png)\)", text):
        with Image.open(out / name) as picture:
            assert picture.width > 600 and len(picture.convert("RGB").getcolors(10**6)) > 20
