#!/bin/bash
# A search of raybone as a job of Slurm: Ray starts on every node of the job, and ends with it.
#   raybone slurm STUDY.yaml --out STUDY > job.sh && sbatch job.sh
# sbatch's own options go before it: sbatch --partition=gpu --account=ours job.sh
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=$cpus
$gpus_line
#SBATCH --time=$time
#SBATCH --output=$name-%j.log
#SBATCH --open-mode=append
# The batch shell hears of the end two minutes before it, and a job that is preempted goes back into the queue: the same
# command resumes the study.
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
set -u
out=$out
place=$$(mktemp -d)
cat > "$$place/study.yaml" <<'$mark'
$study
$mark
export OUT=$$out STUDY=$$place/study.yaml DRIVER=$$place/driver
# Whoever has this token may run code in the job's cluster.
RAY_AUTH_TOKEN=$$(od -An -tx1 -N32 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
# Its address, as a name may be that of the loopback.
head=$$(hostname -I | cut -d" " -f1)
export SRUN_CPUS_PER_TASK=$cpus
port=$$((20000 + SLURM_JOB_ID % 20000))

again=0
end() { [ -f "$$DRIVER" ] && kill -TERM "$$(cat "$$DRIVER")"; }
trap 'again=1; end' USR1   # the end of its time
trap end TERM              # scancel, or a preemption, after which Slurm itself requeues

srun --kill-on-bad-exit=1 ray symmetric-run --address "$$head:$$port" --min-nodes "$$SLURM_JOB_NUM_NODES" \
  --num-cpus $cpus --num-gpus $gpus --include-dashboard=false --temp-dir "/tmp/ray-$$SLURM_JOB_ID" -- \
  bash -c 'echo $$$$ > "$$DRIVER"; exec raybone search "$$STUDY" --out "$$OUT" --address auto --wait 10' &
step=$$!
wait "$$step"
code=$$?
# A signal ends a wait, not what is waited for.
while kill -0 "$$step" 2> /dev/null; do
  wait "$$step"
  code=$$?
done
# symmetric-run ends well where Ray could not start
[ -f "$$DRIVER" ] || code=1
rm -r "$$place"
if [ "$$again" = 1 ] && [ "$$code" != 0 ]; then
  scontrol requeue "$$SLURM_JOB_ID"
fi
exit "$$code"
