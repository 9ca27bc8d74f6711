#!/bin/bash
# One process on each host, the first of which coordinates. The hosts share this folder:
#   HOSTS="node1 node2" bash ssh.sh --config configs/vit_b16.py --workdir runs/vit
set -euo pipefail
read -ra hosts <<<"$HOSTS"

pids=()
for i in "${!hosts[@]}"; do
  place="JAX_COORDINATOR_ADDRESS=${hosts[0]}:${PORT:-12321} JAX_NUM_PROCESSES=${#hosts[@]} JAX_PROCESS_ID=$i"
  # With a terminal of its own a process gets SIGHUP when its ssh ends: it saves, and ends.
  ssh -tt "${hosts[i]}" "cd ${PWD@Q} && exec env $place python train.py ${*@Q}" </dev/null &
  pids+=($!)
done
trap 'kill "${pids[@]}" 2>/dev/null' INT TERM
code=0
for pid in "${pids[@]}"; do
  until wait "$pid"; do
    code=$?
    kill -0 "$pid" 2>/dev/null || break # otherwise a signal to this script ended the waiting
  done
done
exit "$code"
