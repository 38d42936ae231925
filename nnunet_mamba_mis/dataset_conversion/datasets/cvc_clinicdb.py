"""CVC-ClinicDB: frames of 29 video sequences."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_mamba_mis.dataset_conversion.dataset import TRAINING, BinaryMask, Case, Dataset, Grouping
from nnunet_mamba_mis.dataset_conversion.layouts import ImageSet, layouts

# the last frame of each sequence
_SEQUENCE_ENDS = (
    *(25, 50, 67, 78, 103, 126, 151, 177, 199, 205, 227, 252, 277, 297, 317),
    *(342, 363, 383, 408, 428, 447, 466, 478, 503, 528, 546, 571, 591, 612),
)


def sequence(name: str) -> str | None:
    """Return the sequence of a frame, whose name is its number; None for any other name."""
    if not name.isdecimal() or not 1 <= int(name) <= _SEQUENCE_ENDS[-1]:
        return None
    return f"sequence {bisect_left(_SEQUENCE_ENDS, int(name)) + 1}"


def sequences(sources: Sequence[Path], cases: Sequence[Case]) -> Mapping[str, str]:
    """Return the sequence of each training case that is named by a frame number."""
    sequence_of = {case.identifier: sequence(case.identifier) for case in cases if case.subset == TRAINING}
    return {identifier: name for identifier, name in sequence_of.items() if name}


SEQUENCES = Grouping("sequence of CVC-ClinicDB (from the frame number)", sequences)

MASK = BinaryMask(painted=112)

DATASETS = (
    Dataset(
        name="cvc-clinicdb",
        folder_name="CVCClinicDB",
        title="CVC-ClinicDB: polyps in frames of 29 colonoscopy sequences",
        num_images="612",
        size="140 MB",
        layout="Original/N.tif\nGround Truth/N.tif\nor N.png; if PNG/ and TIF/ exist, PNG/ is used",
        labels={"background": 0, "polyp": 1},
        reference="Bernal et al., WM-DOVA maps for accurate polyp highlighting in colonoscopy, CMIG 2015",
        url="https://polyp.grand-challenge.org/CVCClinicDB",
        licence="research and education only, citation required",
        find_cases=layouts(
            [ImageSet("PNG/Original", "PNG/Ground Truth")],
            [ImageSet("CVC-ClinicDB/images", "CVC-ClinicDB/masks")],
            [ImageSet("Original", "Ground Truth")],
        ),
        mask=MASK,
        grouping=SEQUENCES,
    ),
)
