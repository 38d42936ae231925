"""PraNet's bundle, which most polyp papers train and test on."""

from collections.abc import Mapping

from nnunet_mamba_mis.dataset_conversion.dataset import TRAINING, Dataset
from nnunet_mamba_mis.dataset_conversion.datasets.cvc_clinicdb import MASK, SEQUENCES, sequence
from nnunet_mamba_mis.dataset_conversion.layouts import ImageSet, layouts
from nnunet_mamba_mis.utils.text import shortened

_CLINICDB = "CVC-ClinicDB"
_TEST_SETS = ("Kvasir", _CLINICDB, "CVC-ColonDB", "CVC-300", "ETIS-LaribPolypDB")


def _test_set(name: str) -> ImageSet:
    # identifiers are prefixed with the set's name, as several sets name their frames by number
    folder = f"TestDataset/{name}"
    return ImageSet(f"{folder}/images", f"{folder}/masks", subset=name, identifier=f"{name}_{{}}")


def _layout(images: str, masks: str) -> list[ImageSet]:
    return [ImageSet(f"TrainDataset/{images}", f"TrainDataset/{masks}"), *map(_test_set, _TEST_SETS)]


def _shared_sequences(subset_of: Mapping[str, str]) -> list[str]:
    """Return a warning if training and test set contain frames of the same sequence of CVC-ClinicDB."""
    # PraNet's official split puts frames of one sequence into both sets; other splits with its layout may not
    trained = {sequence(identifier) for identifier, subset in subset_of.items() if subset == TRAINING} - {None}
    tested = [identifier for identifier, subset in subset_of.items() if subset == _CLINICDB]
    shared = [identifier for identifier in tested if sequence(identifier.removeprefix(f"{_CLINICDB}_")) in trained]
    if not shared:
        return []
    return [
        f"{len(shared)} of {len(tested)} frames in the test set {_CLINICDB} are from sequences that are also in the "
        f"training set, so good scores on it prove little: {shortened(shared)}"
    ]


DATASETS = (
    Dataset(
        name="pranet",
        folder_name="PraNet",
        title="PraNet's bundle: 900 Kvasir-SEG and 550 CVC-ClinicDB images to train on, five test sets",
        num_images="1450+798",
        size="730 MB",
        layout=(
            "TrainDataset/{image,mask}/*.png or {images,masks}\n"
            "and, optionally, test sets:\nTestDataset/{Kvasir,CVC-ClinicDB,CVC-ColonDB,CVC-300,\n"
            "ETIS-LaribPolypDB}/{images,masks}/*.png"
        ),
        labels={"background": 0, "polyp": 1},
        reference="Fan et al., PraNet: Parallel Reverse Attention Network for Polyp Segmentation, MICCAI 2020",
        url="https://github.com/DengPingFan/PraNet",
        licence="that of each set: research only, citation required",
        find_cases=layouts(_layout("image", "mask"), _layout("image", "masks"), _layout("images", "masks")),
        mask=MASK,
        grouping=SEQUENCES,
        warnings=_shared_sequences,
    ),
)
