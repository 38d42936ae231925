#!/usr/bin/env bash
# Train folds as a Slurm array, one task a fold: machines need not talk to each other, only share nnU-Net's folders.
#
#   sbatch --array=0-4 scripts/slurm_train_folds.sh 101 2d nnUNetTrainerMambaMIS
#   sbatch --array=0-4 --gres=gpu:2 scripts/slurm_train_folds.sh 101 2d nnUNetTrainerMambaMIS -num_gpus 2 --npz
#
# Dataset, configuration and trainer come first; what follows goes to nnUNetv2_train as it is. Five minutes before the
# time limit Slurm sends SIGTERM; training then writes a checkpoint, the task goes back into the queue, and continues
# with --c. A training that fails by itself is not queued again.
#SBATCH --job-name=mamba_mis
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=12
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x_%A_%a.log
set -uo pipefail

if [[ $# -lt 3 || -z ${SLURM_ARRAY_TASK_ID:-} ]]; then
    echo "Usage: sbatch --array=0-4 $0 DATASET CONFIGURATION TRAINER [arguments of nnUNetv2_train]" >&2
    exit 2
fi
dataset=$1 configuration=$2 trainer=$3
shift 3

# --c starts a new training where there is no checkpoint
nnUNetv2_train "$dataset" "$configuration" "$SLURM_ARRAY_TASK_ID" -tr "$trainer" "$@" --c &
training=$!

stops=0
stop() {
    stops=$((stops + 1))
    # With several GPUs the processes that train are children of the command, which itself would die of the signal,
    # and Slurm would end them with it before their checkpoint is written.
    # Before there are such processes there is nothing to save.
    if [[ " $* " =~ " -num_gpus"[\ =]([0-9]+) && ${BASH_REMATCH[1]} -gt 1 ]]; then
        pkill -TERM -P "$training" || kill -TERM "$training"
    else
        kill -TERM "$training"
    fi
}
trap 'stop "$@"' TERM

# a signal ends `wait` before the training has ended, with a status of its own
seen=-1
while [[ $seen -ne $stops ]]; do
    seen=$stops
    wait "$training"
    status=$?
done

if [[ $stops -gt 0 && $status -ne 0 ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
