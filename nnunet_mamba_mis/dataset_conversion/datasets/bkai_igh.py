"""BKAI-IGH NeoPolyp: polyps of two classes, distinguished by colour."""

from nnunet_mamba_mis.dataset_conversion.dataset import ColourMask, Dataset
from nnunet_mamba_mis.dataset_conversion.layouts import ImageSet, layouts

DATASETS = (
    Dataset(
        name="bkai-igh",
        folder_name="BKAIIGH",
        title="BKAI-IGH NeoPolyp: neoplastic and non-neoplastic polyps",
        num_images="1000",
        size="350 MB",
        layout="train/*.jpeg\ntrain_gt/*.jpeg\n(test has no masks and is ignored)",
        labels={"background": 0, "neoplastic": 1, "non-neoplastic": 2},
        reference="Ngoc Lan et al., NeoUNet: Towards Accurate Polyp Segmentation and Neoplasm Detection, ISVC 2021",
        url="https://www.kaggle.com/c/bkai-igh-neopolyp",
        licence="research and education only",
        find_cases=layouts([ImageSet("train", "train_gt")]),
        mask=ColourMask({(255, 0, 0): 1, (0, 255, 0): 2}),
    ),
)
