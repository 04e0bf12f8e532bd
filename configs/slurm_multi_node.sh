#!/usr/bin/env bash
# Several machines under SLURM: one task a GPU, here 2 machines of 8. SLURM tells each task its rank; vidlit reads it.
#
#     sbatch configs/slurm_multi_node.sh --config configs/wan2_1_14b_fsdp.yaml
#
# Ten minutes before the time is up SLURM sends SIGUSR1: the run finishes its step, saves and exits, and the job puts
# itself back into the queue, where it resumes from last.ckpt. So does a job that was preempted (SIGTERM).

#SBATCH --job-name=vidlit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append

set -uo pipefail
run="${VIDLIT_RUN_NAME:-$SLURM_JOB_NAME-$SLURM_JOB_ID}"  # a name of its own: "last" is this job's last
resume=()
compgen -G "runs/$run/*/checkpoints/last.ckpt" > /dev/null && resume=(--ckpt_path last)

# Weights are spread over all GPUs of all machines.
srun .venv/bin/vidlit fit "$@" --run.name "$run" \
    --trainer.num_nodes "$SLURM_JOB_NUM_NODES" --trainer.devices "$SLURM_NTASKS_PER_NODE" \
    --trainer.strategy.init_args.data_parallel_size "$SLURM_NTASKS" "${resume[@]}"
code=$?
# 128 + the signal's number says that it was saved.
if [ "$code" -eq $((128 + 10)) ] || [ "$code" -eq $((128 + 15)) ]; then
    exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
