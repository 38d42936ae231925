#!/usr/bin/env bash
# Compare stock nnU-Net, its network with our optimizer, Mamba-MIS, and Mamba-MIS with convolutions, on skin lesions and
# polyps:
#
#   comparison.sh [--device cuda] DATA [WORK [STEP…]]
#
# DATA holds ISIC-2017_256 (the challenge's images at 256 × 256) and Polyps-256 (PraNet's layout, longest side 256). All
# output goes to WORK (default: mamba_mis_comparison). You can stop the script at any time; the same command resumes.
#
# On a CPU: half the resolution, patch 128 × 128, batch 4, 25 epochs of 250 iterations, fold 0. On two cores each run
# takes 25 minutes to two hours. With --device cuda: full resolution, patch 256 × 256, nnU-Net's own batch, 250 epochs,
# five folds.
# Steps (default: the first six, in this order):
#   networks   the four trainers on both datasets
#   scans      Mamba-MIS with convolutions, its scans replaced by depthwise convolutions, on both datasets
#   recipe     nnU-Net's network with the recipe of Mamba-MIS with convolutions, on both datasets
#   seeds      two more seeds of nnU-Net's network with AdamW and of Mamba-MIS with convolutions, on polyps
#   umamba     U-Mamba, on polyps
#   report     one report per dataset, in WORK/isic2017 and WORK/polyps
#   pack       Mamba-MIS with convolutions for each dataset as WORK/mamba_mis_DATASET.zip, which nnU-Net installs
#   keep       archive logs and predictions of all finished runs, without weights, in predictions/ beside this script
#   published  the same reports from these archives, in WORK/published; this step converts and preprocesses, but trains
#              nothing
set -euo pipefail
device=cpu
if [[ ${1:-} == --device ]]; then
    device=$2
    shift 2
fi
[[ $# -ge 1 && $device =~ ^(cpu|cuda)$ ]] || { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2; }
data=$(realpath -m "$1")
for folder in ISIC-2017_256 Polyps-256; do
    [[ -d $data/$folder ]] || { echo "$data/$folder does not exist: DATA must hold ISIC-2017_256 and Polyps-256" >&2; exit 1; }
done
work=$(realpath -m "${2:-mamba_mis_comparison}")
steps=("${@:3}")
[[ ${#steps[@]} -gt 0 ]] || steps=(networks scans recipe seeds umamba report)
here=$(dirname "$(realpath "$0")")
export nnUNet_raw=$work/raw nnUNet_preprocessed=$work/preprocessed nnUNet_results=$work/results
export nnUNet_extTrainer=$here/trainers
mkdir -p "$nnUNet_raw" "$nnUNet_preprocessed" "$nnUNet_results"

skin=117 polyps=170 plans=nnUNetPlans_comparison
names=([skin]=isic2017 [polyps]=polyps)
if [[ $device == cpu ]]; then
    epochs=25 folds=(0) spacing=(999 2 2) patch=128 batch=4
else
    epochs=250 folds=(0 1 2 3 4) spacing=(999 1 1) patch=256 batch=
fi
ours=nnUNetTrainerMambaMIS stock=nnUNetTrainer_${epochs}epochs adamw=nnUNetTrainerAdamW1e3_${epochs}epochs
adamw_muon=nnUNetTrainerAdamW1e3_muon_${epochs}epochs conv=${ours}_conv_${epochs}epochs

cd "$work"
[[ -d $nnUNet_raw/Dataset${skin}_ISIC2017 ]] || mamba_mis convert isic2017 -i "$data/ISIC-2017_256" -d $skin
[[ -d $nnUNet_raw/Dataset${polyps}_PraNet ]] || mamba_mis convert pranet -i "$data/Polyps-256" -d $polyps
for dataset in $skin $polyps; do
    [[ ! -e $work/planned_$dataset ]] || continue
    nnUNetv2_plan_and_preprocess -d $dataset -c 2d -overwrite_target_spacing "${spacing[@]}" -overwrite_plans_name $plans
    # the same patch for both datasets and all networks
    python - "$nnUNet_preprocessed/Dataset${dataset}_"*"/$plans.json" $patch $batch <<'PYTHON'
import json
import sys

path, patch, *batch = sys.argv[1:]
with open(path) as file:
    plans = json.load(file)
configuration = plans["configurations"]["2d"]
configuration["patch_size"] = [int(patch), int(patch)]
if batch:
    configuration["batch_size"] = int(batch[0])
with open(path, "w") as file:
    json.dump(plans, file, indent=4)
PYTHON
    touch "$work/planned_$dataset"
done

run() {
    local dataset=$1
    shift
    mamba_mis benchmark run -d "$dataset" --plans $plans --folds "${folds[@]}" -device $device \
        --test-sets --save-probabilities "$@"
}

# one report per dataset that has results, on the trainers that have results for this dataset
report() {
    local results=$1 output=$2 dataset trainer trainers reports=0
    for dataset in $skin $polyps; do
        trainers=()
        for trainer in "$stock" "$adamw" "$adamw_muon" "${ours}_${epochs}epochs" "$conv" \
            "${ours}_conv_noSSM_${epochs}epochs" "nnUNetTrainerUMambaBot_${epochs}epochs"; do
            ! compgen -G "$results/seed_*/Dataset${dataset}_*/${trainer}__$plans*/fold_*/validation/summary.json" \
                > /dev/null || trainers+=("$trainer")
        done
        [[ ${#trainers[@]} -gt 0 ]] || continue
        mamba_mis benchmark report -d "$dataset" --results "$results"/seed_* --cost $device --no-overlays -np 2 \
            -o "$output/${names[dataset]}" --trainers "${trainers[@]}"
        reports=$((reports + 1))
    done
    [[ $reports -gt 0 ]] || { echo "$results has no validated fold of ${epochs} epochs: nothing to report" >&2; exit 1; }
}

# archive a model's logs and predictions, without the names of this machine and its folders
keep() {
    local model=$1 copy
    compgen -G "$model/fold_*/validation/summary.json" > /dev/null || return 0
    copy=$(mktemp -d)
    tar -c --exclude='*.pth' --exclude='*.npz' --exclude='*.pkl' --exclude='*.lock' --exclude=progress.png \
        --exclude=benchmark.log "$model" | tar -x -C "$copy"
    find "$copy" -type f ! -name '*.png' -exec sed -i "s#$work#WORK#g; s#\"hostname\": \".*\"#\"hostname\": \"\"#" {} +
    mkdir -p "$here/predictions"
    tar -cJf "$copy/archive" -C "$copy" --sort=name --mtime=@0 --owner=0 --group=0 "$model"
    mv "$copy/archive" "$here/predictions/$(tr / - <<< "${model%%__*}").tar.xz"
    rm -r "$copy"
}

for step in "${steps[@]}"; do
    case $step in
        networks)
            for dataset in $skin $polyps; do
                run $dataset --seeds 1 --trainers "$stock" "$adamw" "${ours}_${epochs}epochs" "$conv"
            done
            ;;
        scans) for dataset in $skin $polyps; do run $dataset --seeds 1 --trainers "${ours}_conv_noSSM_${epochs}epochs"; done ;;
        recipe)
            for dataset in $skin $polyps; do run $dataset --seeds 1 --trainers "$adamw_muon"; done
            ;;
        seeds) run $polyps --seeds 2 3 --trainers "$adamw" "$conv" ;;
        umamba) run $polyps --seeds 1 --trainers "nnUNetTrainerUMambaBot_${epochs}epochs" ;;
        report) report "$nnUNet_results" "$work" ;;
        pack)
            packed=0
            for dataset in $skin $polyps; do
                model="$nnUNet_results/seed_1/Dataset${dataset}_*/${conv}__$plans*"
                compgen -G "$model/fold_${folds[-1]}/checkpoint_final.pth" > /dev/null || continue
                nnUNet_results=$nnUNet_results/seed_1 nnUNetv2_export_model_to_zip -d $dataset -c 2d -tr "$conv" \
                    -p $plans -f "${folds[@]}" -o "$work/unfinished.zip"
                mv "$work/unfinished.zip" "$work/mamba_mis_${names[dataset]}.zip"
                packed=$((packed + 1))
            done
            [[ $packed -gt 0 ]] || { echo "$nnUNet_results has no finished $conv: nothing to pack" >&2; exit 1; }
            ;;
        keep) (cd "$nnUNet_results" && for model in seed_*/Dataset*/*__$plans*; do keep "$model"; done) ;;
        published)
            mkdir -p "$work/published/results"
            for archive in "$here"/predictions/*.tar.xz; do tar -xJf "$archive" -C "$work/published/results"; done
            report "$work/published/results" "$work/published"
            ;;
        *)
            echo "unknown step $step: choose from networks, scans, recipe, seeds, umamba, report, pack, keep and" \
                "published" >&2
            exit 2
            ;;
    esac
done
