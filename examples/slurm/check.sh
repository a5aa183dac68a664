#!/usr/bin/env bash
# Build a cache with a Slurm array, and see that an array that is a list is refused before anything is read.
#   ./check.sh BUILD.toml CACHE      CACHE is build.out of the run file; build.sbatch lies beside this script
# On one machine without a cluster, as root (Debian): apt-get install slurm-wlm munge, then ./check.sh --start
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

start() { # a cluster of this machine alone, in a temporary folder; without cgroups
  folder=$(mktemp -d)
  mkdir "$folder/state" "$folder/spool"
  cat > "$folder/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
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
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=$(hostname -s) Default=YES State=UP
CONF
  munge -n > /dev/null 2>&1 || { mkdir -p /run/munge && chown munge /run/munge && su -s /bin/sh munge -c munged; }
  export SLURM_CONF=$folder/slurm.conf
  slurmctld
  slurmd
  echo "export SLURM_CONF=$SLURM_CONF   # to stop: kill \$(cat $folder/*.pid)"
}

if [ "${1:-}" = --start ]; then
  start
  exit
fi
run=$1 cache=$2
sinfo --version
echo "== sbatch --array=0-1"
sbatch --wait --array=0-1 --output=range-%a.log "$here/build.sbatch" "$run" && tail -n 4 range-0.log range-1.log
tide-cache verify "$cache"
echo "== sbatch --array=1,3"
sbatch --wait --array=1,3 --output=list-%a.log "$here/build.sbatch" "$run" || cat list-1.log list-3.log
