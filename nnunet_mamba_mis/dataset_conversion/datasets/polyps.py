"""Polyp sets with one folder of images and one of masks: CVC-ColonDB, CVC-300, ETIS-LaribPolypDB."""

from nnunet_mamba_mis.dataset_conversion.dataset import Dataset
from nnunet_mamba_mis.dataset_conversion.layouts import ImageSet, layouts

_LABELS = {"background": 0, "polyp": 1}
_PRANET = "https://github.com/DengPingFan/PraNet (TestDataset)"

DATASETS = (
    Dataset(
        name="cvc-colondb",
        folder_name="CVCColonDB",
        title="CVC-ColonDB: polyps in colonoscopy frames",
        num_images="380 (original: 300)",
        size="85 MB (original: 800 MB)",
        layout=(
            "CVC-ColonDB/{images,masks}/*.png\nor images/*.png, masks/*.png\n"
            "or original: N.bmp, pN.bmp in one folder (without N.bmp: pN.bmp, sN.bmp)"
        ),
        labels=_LABELS,
        reference="Bernal et al., Towards automatic polyp detection with a polyp appearance model, PR 2012",
        url=f"http://mv.cvc.uab.es; {_PRANET}",
        licence="research only, citation required",
        find_cases=layouts(
            [ImageSet("CVC-ColonDB/images", "CVC-ColonDB/masks")],
            # p is the polyp's mask; s and c are other drawings of it
            [ImageSet("*", "*", image_stem=r"(\d+)", mask_stem=r"p(\d+)", others=r"[sc]\d+")],
            # without N.bmp, p is the image, s its segmentation and c its contour
            [ImageSet("*", "*", image_stem=r"p(\d+)", mask_stem=r"s(\d+)", others=r"c\d+")],
            [ImageSet("images", "masks")],
        ),
    ),
    Dataset(
        name="cvc-300",
        folder_name="CVC300",
        title="CVC-300: test frames of EndoScene",
        num_images="60",
        size="15 MB",
        layout="CVC-300/{images,masks}/*.png\nor images/*.png, masks/*.png",
        labels=_LABELS,
        reference="Vázquez et al., A Benchmark for Endoluminal Scene Segmentation of Colonoscopy Images, JHE 2017",
        url=_PRANET,
        licence="research only, citation required",
        find_cases=layouts([ImageSet("CVC-300/images", "CVC-300/masks")], [ImageSet("images", "masks")]),
    ),
    Dataset(
        name="etis",
        folder_name="ETIS",
        title="ETIS-LaribPolypDB: polyps in colonoscopy frames",
        num_images="196",
        size="700 MB",
        layout="ETIS-LaribPolypDB/N.tif\nGround Truth/pN.tif\nor ETIS-LaribPolypDB/{images,masks}/*.png",
        labels=_LABELS,
        reference="Silva et al., Toward embedded detection of polyps in WCE images, IJCARS 2014",
        url=f"https://polyp.grand-challenge.org; {_PRANET}",
        licence="research only, citation required",
        find_cases=layouts(
            [ImageSet("ETIS-LaribPolypDB/images", "ETIS-LaribPolypDB/masks")],
            [ImageSet("images", "masks")],
            [ImageSet("ETIS-LaribPolypDB", "Ground Truth", image_stem=r"(\d+)", mask_stem=r"p(\d+)")],
        ),
    ),
)
