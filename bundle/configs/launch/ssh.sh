#!/bin/bash
# Training on several machines over plain ssh, without a scheduler. Each must have this folder and the data at the same
# path, and let you in without a password. From the bundle's folder:
#   HOSTS="node1 node2" PROCESSES=8 configs/launch/ssh.sh --dataset_dir /data/prepared/MSD_Lung
# What follows the file's name goes to the training as it is. The first host is where the others meet.
# SETUP is run on each before: by default it takes over this shell's PATH, so that torchrun is found.
set -euo pipefail
read -r -a hosts <<<"${HOSTS:?name the machines, such as HOSTS='node1 node2'}"
CONFIGS="${CONFIGS:-['configs/train.json','configs/multi_gpu_train.json','configs/network/hiera_s.json','configs/paper.json']}"
SETUP="${SETUP:-export PATH=$(printf %q "$PATH")}"
run_id="boltzformer-$$"
command=(torchrun "--nnodes=${#hosts[@]}" "--nproc_per_node=${PROCESSES:-8}" "--max_restarts=${RESTARTS:-3}"
    "--rdzv_id=$run_id" --rdzv_backend=c10d "--rdzv_endpoint=${hosts[0]}:${PORT:-29500}"
    -m monai.bundle run training --config_file "$CONFIGS" --resume true "$@")
pids=()
for host in "${hosts[@]}"; do
    ssh "$host" "$SETUP; cd $(printf %q "$PWD") && exec $(printf '%q ' "${command[@]}")" &
    pids+=("$!")
done
code=0
for pid in "${pids[@]}"; do
    wait "$pid" || code=$?
done
exit "$code"
