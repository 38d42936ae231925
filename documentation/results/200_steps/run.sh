#!/usr/bin/env bash
# Reproduce the reports in this folder: run.sh DATA [WORK], where DATA holds ISIC-2017_256 (the challenge's images at
# 256 × 256), Kvasir-SEG, CVC-ClinicDB and ETIS-LaribPolypDB. The script takes about two hours on two CPU cores; the
# same command resumes an interrupted run.
set -euo pipefail
data=$(realpath "$1")
here=$(dirname "$(realpath "$0")")
work=$(realpath -m "${2:-mamba_mis_results}")
export nnUNet_raw=$work/raw nnUNet_preprocessed=$work/preprocessed nnUNet_results=$work/results
export nnUNet_extTrainer=$here/../trainers
mkdir -p "$nnUNet_raw" "$nnUNet_preprocessed" "$nnUNet_results"
trainers=(nnUNetTrainer_short nnUNetTrainerAdamW1e3_short nnUNetTrainerMambaMIS_short nnUNetTrainerMambaMIS_noSSM_short)

if [ ! -d "$nnUNet_raw/Dataset020_ETIS" ]; then
    # every eighth of the 2000 training images, and all 150 validation images as a test set
    subset=$work/isic_subset
    mkdir -p "$subset"/ISIC-2017_Training_{Data,Part1_GroundTruth}
    cd "$data/ISIC-2017_256"
    for image in $(find ISIC-2017_Training_Data -name '*.jpg' -printf '%f\n' | sort | awk 'NR % 8 == 1'); do
        cp "ISIC-2017_Training_Data/$image" "$subset/ISIC-2017_Training_Data"
        cp "ISIC-2017_Training_Part1_GroundTruth/${image%.jpg}_segmentation.png" "$subset/ISIC-2017_Training_Part1_GroundTruth"
    done
    cp -r ISIC-2017_Validation_* "$subset"
    cd "$work"
    mamba_mis convert isic2017 -i "$subset" -d 17
    mamba_mis convert kvasir-seg -i "$data/Kvasir-SEG" -d 18
    mamba_mis convert cvc-clinicdb -i "$data/CVC-ClinicDB" -d 19
    mamba_mis convert etis -i "$data/ETIS-LaribPolypDB" -d 20
fi
if [ ! -e "$work/planned" ]; then
    nnUNetv2_plan_and_preprocess -d 17 -c 2d -overwrite_target_spacing 999 2 2 -gpu_memory_target 0.1 \
        -overwrite_plans_name nnUNetPlans_half
    nnUNetv2_plan_and_preprocess -d 18 -c 2d -overwrite_target_spacing 999 4 4 -gpu_memory_target 0.1 \
        -overwrite_plans_name nnUNetPlans_quarter
    touch "$work/planned"
fi

mamba_mis benchmark run -d 17 --trainers "${trainers[@]}" --plans nnUNetPlans_half -device cpu --test-sets
mamba_mis benchmark run -d 18 --trainers "${trainers[@]}" --plans nnUNetPlans_quarter -device cpu --test-on 19 20

# without pictures of cases, as this project does not redistribute images
mamba_mis benchmark report -d 17 --trainers "${trainers[@]}" --cost cpu --no-overlays -o "$work/isic2017"
mamba_mis benchmark report -d 18 --trainers "${trainers[@]}" --cost cpu --no-overlays -o "$work/kvasir_seg"
