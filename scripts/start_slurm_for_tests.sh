#!/usr/bin/env bash
# Start Slurm on this machine for tests: munge, the controller and one node, with all files in one folder.
#
#   scripts/start_slurm_for_tests.sh FOLDER        start; afterwards: export SLURM_CONF=FOLDER/slurm.conf
#   scripts/start_slurm_for_tests.sh FOLDER stop   stop Slurm
#
# The script needs root and Debian's packages (apt-get install slurm-wlm munge). It works without cgroups, as in
# containers: Slurm tracks processes by their parents (proctrack/linuxproc), and counts resources without enforcing them.
set -euo pipefail

if [[ $# -lt 1 || $# -gt 2 || ${2:-stop} != stop ]]; then
    echo "Usage: $0 FOLDER [stop]" >&2
    exit 2
fi
mkdir -p "$1"
folder=$(realpath "$1")

stop() {
    for daemon in slurmd slurmctld munged; do
        local file=$folder/$daemon.pid
        [[ -s $file ]] || continue
        local pid
        pid=$(<"$file")
        kill "$pid" 2>/dev/null || true
        for _ in {1..50}; do
            # in a container an ended process may stay a zombie, as no parent collects its status
            [[ -e /proc/$pid && $(ps -o stat= -p "$pid") != Z* ]] || break
            sleep 0.1
        done
        rm -f "$file"
    done
}

if [[ ${2:-} == stop ]]; then
    stop
    exit
fi

for command in munged slurmctld slurmd sbatch srun scontrol sinfo; do
    if ! command -v "$command" >/dev/null; then
        echo "$command is not installed: apt-get install slurm-wlm munge" >&2
        exit 3
    fi
done
if [[ $(id -u) != 0 ]]; then
    echo "$0 starts Slurm's daemons as root: run it as root" >&2
    exit 3
fi

host=$(hostname -s)
cores=$(nproc)
# two free ports, so that a running Slurm does not interfere
read -r port_of_controller port_of_node < <(python3 -c '
import socket
sockets = [socket.socket() for _ in range(2)]
for each in sockets:
    each.bind(("", 0))
print(*(each.getsockname()[1] for each in sockets))')
mkdir -p "$folder"/{state,spool,munge}
# munge refuses folders that others can write to, including parent folders
chmod 755 "$folder" "$folder/munge"
head -c 128 /dev/urandom >"$folder/munge/key"
chmod 400 "$folder/munge/key"

cat >"$folder/slurm.conf" <<EOF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port_of_controller
SlurmdPort=$port_of_node
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# a requeued job waits until its last credentials expire
AuthInfo=socket=$folder/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=2,batch_sched_delay=0
KillWait=60
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores RealMemory=1000 State=UNKNOWN
PartitionName=tests Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
EOF

export SLURM_CONF=$folder/slurm.conf
trap 'echo "Slurm did not start; logs are in $folder" >&2; stop' ERR
munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munge/seed"
slurmctld
slurmd -N "$host"
for _ in {1..100}; do
    state=$(sinfo --noheader --format=%t 2>/dev/null || true)
    if [[ $state == idle ]]; then
        echo "Slurm $(sinfo --version | cut -d' ' -f2) is up, with $cores cores on $host: export SLURM_CONF=$SLURM_CONF"
        exit
    fi
    sleep 0.3
done
false
