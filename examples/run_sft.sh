#!/usr/bin/env bash
# Supervised fine-tuning before DPO, with verl's own SFT trainer on the conversations that `verl-aiops build-sft` writes.
#
#   verl-aiops build-sft --out data/sft.parquet --incidents incidents.jsonl
#   MODEL=models/SmolLM2-135M-Instruct TRAIN=data/sft.parquet VAL=data/sft.val.parquet OUT=runs/sft \
#     bash examples/run_sft.sh [key=value ...]
#
# GPUS=0 trains on the CPU (one process). The model for the next stage is OUT/huggingface.
set -euo pipefail
. "$(dirname "$0")/hydra_values.sh"
MODEL=${MODEL:-models/SmolLM2-135M-Instruct}
TRAIN=${TRAIN:-data/sft.parquet}
VAL=${VAL:-data/sft.val.parquet}
GPUS=${GPUS:-1}
OUT=${OUT:-runs/sft}
OUT=$(home "$OUT")
export TENSORBOARD_DIR=${TENSORBOARD_DIR:-$OUT/tensorboard}

args=(
  data.train_files="$(files "$TRAIN")"
  data.val_files="$(files "$VAL")"
  data.messages_key=messages
  data.train_batch_size=16
  data.micro_batch_size_per_gpu=4
  data.use_dynamic_bsz=False
  data.max_length=2048
  data.truncation=error
  data.num_workers=0
  model.path="$(text "$MODEL")"
  model.use_remove_padding=False                              # True where flash-attn is installed
  +model.override_config.attn_implementation=sdpa
  optim.lr=1e-4
  engine.use_torch_compile=False
  checkpoint.save_contents='[model,optimizer,extra,hf_model]' # hf_model: the plain folder for the next stage
  trainer.total_epochs=3
  trainer.test_freq=after_each_epoch
  trainer.save_freq=after_each_epoch
  trainer.logger='[console,tensorboard]'
  trainer.project_name=verl-aiops
  trainer.experiment_name=sft
  trainer.default_local_dir="$(text "$OUT")"
)
if [ "$GPUS" = 0 ]; then
  GPUS=1
  args+=(trainer.device=cpu engine.strategy=fsdp2 model.enable_gradient_checkpointing=False
    '+engine.mixed_precision={param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}')
fi
torchrun --standalone --nnodes=1 --nproc_per_node="$GPUS" -m verl.trainer.sft_trainer \
  "${args[@]}" trainer.n_gpus_per_node="$GPUS" "$@"
last=$(cat "$OUT/latest_checkpointed_iteration.txt")
rm -rf "$OUT/huggingface" && cp -r "$OUT/global_step_$last/huggingface" "$OUT/huggingface"
chmod -R +r "$OUT/huggingface" # for whom the umask allows it: safetensors makes files that nobody else can read
echo "model for the next stage: $OUT/huggingface"
