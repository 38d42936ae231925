#!/usr/bin/env bash
# Train folds as a Slurm array, one task per fold. Nodes share only nnU-Net's folders and need not communicate.
#
#   sbatch --array=0-4 scripts/slurm_train_folds.sh 101 2d nnUNetTrainerMambaMIS
#   sbatch --array=0-4 --gres=gpu:2 scripts/slurm_train_folds.sh 101 2d nnUNetTrainerMambaMIS -num_gpus 2 --npz
#
# Dataset, configuration and trainer come first; further arguments go to nnUNetv2_train unchanged. Five minutes before the
# time limit, Slurm sends SIGTERM: training writes a checkpoint, and the task goes back into the queue and resumes with
# --c. A run that fails before this signal is not requeued.
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

# --c starts a new run if there is no checkpoint
nnUNetv2_train "$dataset" "$configuration" "$SLURM_ARRAY_TASK_ID" -tr "$trainer" "$@" --c &
training=$!

stops=0
stop() {
    stops=$((stops + 1))
    # With several GPUs, child processes of the command train. SIGTERM would end the command itself, and Slurm would
    # then end the children before they write their checkpoint. So only the children get SIGTERM. If there are no
    # children yet, there is nothing to save, and the command gets the signal.
    if [[ " $* " =~ " -num_gpus"[\ =]([0-9]+) && ${BASH_REMATCH[1]} -gt 1 ]]; then
        pkill -TERM -P "$training" || kill -TERM "$training"
    else
        kill -TERM "$training"
    fi
}
trap 'stop "$@"' TERM

# a signal makes `wait` return early, with the signal's status instead of the command's
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
