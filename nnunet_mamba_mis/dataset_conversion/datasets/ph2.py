"""PH2."""

from nnunet_mamba_mis.dataset_conversion.dataset import Dataset
from nnunet_mamba_mis.dataset_conversion.layouts import ImageSet, layouts

DATASETS = (
    Dataset(
        name="ph2",
        folder_name="PH2",
        title="PH2: skin lesions in dermoscopy images",
        num_images="200",
        size="280 MB",
        layout="IMD*/IMD*_Dermoscopic_Image/IMD*.bmp\nIMD*/IMD*_lesion/IMD*_lesion.bmp",
        labels={"background": 0, "lesion": 1},
        reference="Mendonça et al., PH2: a dermoscopic image database for research and benchmarking, EMBC 2013",
        url="https://www.fc.up.pt/addi/ph2%20database.html",
        licence="research and education only, citation required",
        find_cases=layouts(
            [
                ImageSet(
                    "*_Dermoscopic_Image",
                    "*_lesion",
                    image_stem=r"(IMD\d+)",
                    mask_stem=r"(IMD\d+)_lesion",
                    several=True,
                )
            ]
        ),
    ),
)
