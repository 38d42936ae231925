"""The bundle of PraNet: what most papers on polyps train and test on."""

from nnunet_mamba_mis.dataset_conversion.dataset import Dataset
from nnunet_mamba_mis.dataset_conversion.datasets.cvc_clinicdb import MASK, SEQUENCES
from nnunet_mamba_mis.dataset_conversion.layouts import ImageSet, layouts

_TEST_SETS = ("Kvasir", "CVC-ClinicDB", "CVC-ColonDB", "CVC-300", "ETIS-LaribPolypDB")


def _test_set(name: str) -> ImageSet:
    # several sets number their frames: the name keeps these apart
    folder = f"TestDataset/{name}"
    return ImageSet(f"{folder}/images", f"{folder}/masks", subset=name, identifier=f"{name}_{{}}")


def _layout(images: str, masks: str) -> list[ImageSet]:
    return [ImageSet(f"TrainDataset/{images}", f"TrainDataset/{masks}"), *map(_test_set, _TEST_SETS)]


DATASETS = (
    Dataset(
        name="pranet",
        folder_name="PraNet",
        title="PraNet's bundle: 900 Kvasir-SEG and 550 CVC-ClinicDB images to train on, five test sets",
        num_images="1450+798",
        size="730 MB",
        layout=(
            "TrainDataset/{image,mask}/*.png or {images,masks}\n"
            "and, as test sets, those there of\nTestDataset/{Kvasir,CVC-ClinicDB,CVC-ColonDB,CVC-300,\n"
            "ETIS-LaribPolypDB}/{images,masks}/*.png"
        ),
        labels={"background": 0, "polyp": 1},
        reference="Fan et al., PraNet: Parallel Reverse Attention Network for Polyp Segmentation, MICCAI 2020",
        url="https://github.com/DengPingFan/PraNet",
        licence="that of each set: research only, to be cited",
        find_cases=layouts(_layout("image", "mask"), _layout("image", "masks"), _layout("images", "masks")),
        mask=MASK,
        grouping=SEQUENCES,
        warnings=lambda subset_of: (
            ["the test set CVC-ClinicDB holds frames of sequences of the training set: good scores on it prove little"]
            if "CVC-ClinicDB" in subset_of.values()
            else []
        ),
    ),
)
