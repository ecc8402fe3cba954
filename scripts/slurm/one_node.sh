#!/usr/bin/env bash
# A SLURM of one node on this machine, to try sweeps at home and to test them: sbatch, arrays, time limits, requeue.
#
#   scripts/slurm/one_node.sh up      # installs Debian's packages if they are missing, then starts; needs root
#   scripts/slurm/one_node.sh down    # stops what `up` started
#
# It has no accounting and does not fence its jobs in: nothing for work that matters. A configuration of somebody else's
# is left alone, and so is a SLURM that works already.
set -euo pipefail

state=/var/tmp/pvcbench-slurm
config=/etc/slurm/slurm.conf
mark="# written by pvcbench's one_node.sh"

fail() { echo "one_node.sh: $*" >&2; exit 1; }

ready() { [[ $(sinfo --noheader --format=%T 2>/dev/null) =~ idle|mixed|allocated ]]; }

running() { [[ -s $1 ]] && kill -0 "$(<"$1")" 2>/dev/null; }

install_packages() {
  command -v apt-get >/dev/null || fail "SLURM is not installed and there is no apt-get: install SLURM and munge first"
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq update
  # no service may start by itself while the packages are unpacked
  local policy=/usr/sbin/policy-rc.d
  [[ -e $policy ]] || { printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod +x "$policy"; trap "rm -f $policy" EXIT; }
  apt-get -qq -o DPkg::Lock::Timeout=300 install --no-install-recommends slurmctld slurmd slurm-client munge >/dev/null
}

write_config() {
  if [[ -e $config ]] && ! grep -qF "$mark" "$config"; then
    fail "$config is not mine: start that SLURM, or move the file away"
  fi
  mkdir -p "$(dirname "$config")" "$state/controller" "$state/node"
  local memory
  memory=$(awk '/^MemTotal:/ { print int($2 / 1024 * 0.9) }' /proc/meminfo)
  cat >"$config" <<CONF
$mark
ClusterName=one
SlurmctldHost=$(hostname -s)
SlurmUser=root
StateSaveLocation=$state/controller
SlurmdSpoolDir=$state/node
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd.log
# a job may start again 5 seconds after it was requeued, not 2 minutes
AuthInfo=cred_expire=5
# no cgroups: containers seldom allow them
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
# cores are shared out, memory is not
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=5,batch_sched_delay=1
KillWait=5
ReturnToService=2
NodeName=$(hostname -s) CPUs=$(nproc) RealMemory=$memory
PartitionName=one Nodes=ALL Default=YES MaxTime=INFINITE
CONF
}

start_munge() {
  munge --no-input >/dev/null 2>&1 && return
  install -d -o munge -g munge -m 755 /run/munge
  install -d -o munge -g munge -m 700 /var/log/munge /var/lib/munge
  [[ -s /etc/munge/munge.key ]] || fail "munge has no key in /etc/munge: run mungekey"
  setpriv --reuid=munge --regid=munge --clear-groups munged --pid-file=/run/munge/one_node.pid
}

up() {
  if command -v sinfo >/dev/null && ready; then sinfo; return; fi
  ((EUID == 0)) || fail "starting SLURM needs root"
  command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null || install_packages
  write_config
  start_munge
  running "$state/slurmctld.pid" || slurmctld
  running "$state/slurmd.pid" || slurmd
  for _ in {1..60}; do
    if ready; then sinfo; return; fi
    sleep 1
  done
  tail -n 5 "$state"/*.log >&2
  fail "the node did not come up in a minute; the logs are in $state"
}

down() {
  local file
  for file in "$state/slurmd.pid" "$state/slurmctld.pid" /run/munge/one_node.pid; do
    if running "$file"; then kill "$(<"$file")"; fi
  done
  echo "stopped"
}

case ${1:-} in
  up) up ;;
  down) down ;;
  *) fail "what is '${1:-}'? write up or down" ;;
esac
