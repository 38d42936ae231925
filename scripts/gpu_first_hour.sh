#!/usr/bin/env bash
# Use the first hour on a machine with a GPU: run tests, benchmarks, profiles and short training runs, and write all
# results into one folder.
#
#   scripts/gpu_first_hour.sh [OPTION…] OUT [SLICE…]
#
# Slices, in this order (default: all):
#   install   create an environment in OUT from the wheels, on top of PYTHON's own packages; skipped if PYTHON already
#             has nnU-Net and this package
#   tests     run tests marked `gpu`, then all other tests in tests/ops, which include those of the compiled kernels
#   bench     run the benchmarks of `make bench-gpu`
#   profile   profile a training step of nnU-Net's trainer and of Mamba-MIS (operators, trace, memory) in several
#             modes: the trainer's default, compiled, compiled with CUDA graphs, and eager
#   train     train with nnU-Net's trainer and with Mamba-MIS for a few epochs
# Options:
#   --minutes N     stop after N minutes (default: 9); run the same command again to resume
#   --bring FOLDER  first copy wheels and a preprocessed dataset from FOLDER into OUT; may be given several times.
#                   scripts/collect_wheels.py and scripts/prepare_gpu_data.py write such folders
#   --retry         repeat failed steps; by default, all finished steps are skipped
#   --epochs N      length of training runs: 1, 5 (default), 10, 20, 50, 100, 250 or 500
#   --device cpu    use tiny sizes, to check this script without a GPU
#
# The script needs Python with torch and Triton (PYTHON, default python3) and this checkout, but no network. It exits
# with status 0 if all slices passed, else 1. OUT/summary.txt lists what passed, failed or was cut off. OUT/results.tar.gz
# holds everything except the environment, data, caches and checkpoints.
set -uo pipefail

usage() {
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2
    exit 2
}

minutes=9 epochs=5 device=cuda retry=false brought=()
while [[ ${1:-} == -* ]]; do
    case $1 in
        --retry) retry=true; shift; continue ;;
        --minutes | --bring | --epochs | --device) [[ $# -gt 1 ]] || usage ;;
        *) usage ;;
    esac
    case $1 in
        --minutes) minutes=$2 ;;
        --bring) brought+=("$(realpath "$2")") ;;
        --epochs) epochs=$2 ;;
        --device) device=$2 ;;
    esac
    shift 2
done
[[ $# -ge 1 && $minutes =~ ^[0-9]+$ && $device =~ ^(cuda|cpu)$ ]] || usage
deadline=$((SECONDS + 60 * minutes))
trap 'deadline=0; kill -TERM "${running:-}" 2>/dev/null' INT TERM HUP
mkdir -p "$1"
out=$(realpath "$1")
shift
slices=("$@")
[[ $# -gt 0 ]] || slices=(install tests bench profile train)
for slice in "${slices[@]}"; do
    [[ $slice =~ ^(install|tests|bench|profile|train)$ ]] || usage
done

here=$(dirname "$(realpath "$0")")
helpers=$here/gpu_first_hour
repository=$(dirname "$here")
python=$(command -v "${PYTHON:-python3}")
mkdir -p "$out"/{state,logs,wheels,preprocessed}
export PYTHONUNBUFFERED=1 TRITON_CACHE_DIR=$out/cache/triton TORCHINDUCTOR_CACHE_DIR=$out/cache/inductor
export nnUNet_raw=$out/raw nnUNet_preprocessed=$out/preprocessed nnUNet_results=$out/results

# Run a command unless it has finished before, and stop it at the deadline. state/NAME holds the command's exit status
# ("cut" until it ends) and its seconds.
unit() {
    local name=$1 state=$out/state/$1 status start=$SECONDS
    shift
    read -r status _ 2>/dev/null <"$state" || status=none
    case $status in
        0) return ;;
        none | cut) ;;
        *) $retry || return ;;
    esac
    if ((deadline - SECONDS < 5)); then
        [[ $status != none ]] || echo "cut 0" >"$state"
        return
    fi
    echo "cut 0" >"$state"
    echo "== $name"
    echo "== $(date) $*" >>"$out/logs/$name.log"
    # send TERM only to the command: to write its checkpoint, training needs its worker processes
    setsid timeout --foreground --kill-after=20 $((deadline - SECONDS)) "$@" >>"$out/logs/$name.log" 2>&1 &
    running=$!
    wait $running
    status=$?
    # a signal to this script ends `wait` early
    while kill -0 $running 2>/dev/null; do
        wait $running
        status=$?
    done
    # end processes that the command left running
    pkill -KILL -s $running 2>/dev/null || kill -KILL -- -$running 2>/dev/null
    ((status == 0 || SECONDS < deadline)) || status='cut'
    echo "$status $((SECONDS - start))" >"$state"
    echo "   $status after $((SECONDS - start)) s"
    [[ $status =~ ^(0|cut)$ ]] || tail -n 15 "$out/logs/$name.log"
}

bring() {
    local folder
    for folder in "${brought[@]}"; do
        find "$folder" -maxdepth 1 \( -name '*.whl*' -o -name wheels.sha256 \) -exec cp -t "$out/wheels" {} +
        find "$folder" -maxdepth 1 -name 'Dataset*' -exec cp -r -t "$out/preprocessed" {} +
    done
}

install() {
    # do not install over an installed package
    (cd / && "$python" -c 'import nnunetv2, nnunet_mamba_mis') 2>/dev/null && return
    # retry a failed installation: --bring may have added the missing wheels
    [[ ${#brought[@]} == 0 ]] || grep -qs '^0 ' "$out/state/install" || rm -f "$out/state/install"
    unit install bash "$helpers/install.sh" "$python" "$out"
}

tests() {
    local marked kernels=(tests/ops)
    mapfile -t marked < <(grep -rlE 'mark\.gpu' tests --include='test_*.py' | sort)
    [[ $device == cuda ]] || kernels=(tests/ops/test_triton_kernels.py -k 'float64 or optional')
    run_tests tests_gpu -m gpu "${marked[@]}"
    run_tests tests_kernels -m 'not gpu' "${kernels[@]}"
}

# Run tests, and restart after a test that crashes the process or leaves CUDA unusable (75), continuing with the next test.
run_tests() {
    local name=$1 status
    shift
    ! $retry || sed -i '/^failed/d;/^began/d' "$out/$name.tsv" 2>/dev/null
    for _ in {1..20}; do
        # -P: import the installed package, not the one in this folder
        unit "$name" env PYTHONPATH="$helpers" "$python" -P -m pytest -vv -p finished_tests -p no:cacheprovider \
            --finished "$out/$name.tsv" "$@"
        read -r status _ <"$out/state/$name"
        [[ $status == 75 || ($status != cut && $status -gt 128) ]] || break
        echo "cut 0" >"$out/state/$name"
    done
}

bench() {
    local name tiny=()
    [[ $device == cuda ]] || tiny=(--tiny)
    for name in scan_gpu network_gpu memory; do
        unit "bench_$name" "$python" "performance/$name.py" --continue --results "$out/bench" "${tiny[@]}"
    done
}

profile() {
    local trainer mode data variable options steps=20
    data=$(dataset) || return
    [[ $device == cuda ]] || steps=1
    for mode in default compiled reduce-overhead eager; do
        # default: nnU-Net's trainer compiles its network, ours replays a CUDA graph
        case $mode in
            default) variable=(-u nnUNet_compile) options=() ;;
            compiled) variable=(nnUNet_compile=true) options=() ;;
            reduce-overhead) variable=(nnUNet_compile=true) options=(--mode "$mode") ;;
            eager) variable=(nnUNet_compile=false) options=() ;;
        esac
        for trainer in nnUNetTrainer nnUNetTrainerMambaMIS nnUNetTrainerMambaMIS_conv; do
            [[ $mode$trainer != compilednnUNetTrainer ]] || continue
            local name=${trainer}_$mode
            unit "profile_$name" env "${variable[@]}" nnUNet_results="$out/profile/results" \
                "$python" "$helpers/profile_step.py" "$trainer" "$data" "$out/profile" --name "$name" \
                --device "$device" --steps "$steps" "${options[@]}"
        done
        [[ $device == cuda ]] || break  # nothing is compiled on a CPU
    done
}

train() {
    local trainer name data length=_${epochs}epochs
    data=$(dataset) || return
    [[ $epochs != 1 ]] || length=_1epoch
    for trainer in nnUNetTrainer nnUNetTrainerMambaMIS; do
        name=$trainer$length
        if [[ $device == cpu ]]; then
            name=$trainer  # defined in tests/programs/brief_trainers.py
            [[ $trainer != nnUNetTrainer ]] || name+=_brief
        fi
        # --c starts a new run if there is no checkpoint
        unit "train_$trainer" "$python" -c 'from nnunetv2.run.run_training import run_training_entry as run; run()' \
            "$data" 2d 0 -tr "$name" -device "$device" --c
    done
}

# Describe the machine; for a missing command, OUT/machine.txt holds the shell's error.
machine() {
    date
    git log -1 --oneline
    nvidia-smi
    nvidia-smi -q -d MEMORY,CLOCK,POWER
    uname -a
    lscpu
    free -g
    df -h "$out"
    "$python" -c 'import sys; from importlib.metadata import distributions as all; print(sys.version)
for line in sorted({f"{d.name}=={d.version}" for d in all()}): print(line)'
}

# Print the name of the preprocessed dataset.
dataset() {
    local datasets=("$out"/preprocessed/Dataset*)
    if [[ ${#datasets[@]} != 1 || ! -d ${datasets[0]} ]]; then
        echo "$out/preprocessed must hold one dataset: write it with scripts/prepare_gpu_data.py, then --bring it" >&2
        echo "1 0" >"$out/state/dataset"
        return 1
    fi
    rm -f "$out/state/dataset"
    basename "${datasets[0]}"
}

cd "$repository" || exit
bring
[[ " ${slices[*]} " != *" install "* ]] || install
[[ ! -x $out/venv/bin/python ]] || python=$out/venv/bin/python
machine >"$out/machine.txt" 2>&1
if [[ $device == cpu ]]; then
    export TRITON_INTERPRET=1 nnUNet_n_proc_DA=0 nnUNet_def_n_proc=1
    mkdir -p "$out/trainers"
    cp tests/programs/brief_trainers.py "$out/trainers"
    export nnUNet_extTrainer=$out/trainers
fi
for slice in "${slices[@]}"; do
    case $slice in
        tests) tests ;;
        bench) bench ;;
        profile) profile ;;
        train) train ;;
    esac
done

"$python" "$helpers/summary.py" "$out" >"$out/summary.txt"
status=$?
cat "$out/summary.txt"
: >"$out/results.tar.gz"  # create it first, so that the folder does not change while tar reads it
tar -czf "$out/results.tar.gz" -C "$out" --exclude='*.pth' --exclude=results.tar.gz --exclude=./venv --exclude=./cache \
    --exclude=./wheels --exclude=./preprocessed --exclude=./raw .
exit $status
