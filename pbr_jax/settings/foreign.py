"""What other trainers call a setting: our key, or what the thing amounts to here."""

# Our key -> names of the same thing elsewhere.
_SAME = {
    "name": "run_name experiment experiment_name exp_name job_name wandb_name",
    "seed": "random_seed manual_seed rng_seed random_state data_seed",
    "method": "algorithm peft_type finetuning_type tuner",
    "memory_budget": "max_memory gpu_memory memory_limit vram",
    "steps": "max_steps num_steps total_steps train_steps num_train_steps training_steps max_iters"
    " iterations num_iterations n_steps n_iters",
    "batch_size": "bs batch batchsize train_batch_size global_batch_size total_batch_size"
    " per_device_train_batch_size per_gpu_train_batch_size",
    "eval_every": "eval_steps eval_interval eval_freq evaluation_steps validation_steps"
    " val_check_interval val_interval",
    "checkpoint_every": "save_steps save_interval save_every save_freq checkpoint_interval"
    " checkpoint_steps",
    "keep_checkpoints": "save_total_limit max_to_keep keep_last keep_last_n save_top_k",
    "log_every": "logging_steps log_interval log_steps log_freq log_every_n_steps print_freq",
    "pruning.keep": "keep_ratio keep_rate keep_fraction density",
    "plan.batch_chunks": "chunks num_chunks microbatches",
    "model.family": "arch architecture backbone model_type model_arch",
    "model.size": "model_size",
    "model.width": "hidden_size hidden_dim embed_dim embedding_dim d_model dim emb_dim",
    "model.depth": "layers num_layers n_layers n_layer num_hidden_layers num_blocks n_blocks",
    "model.heads": "num_heads n_heads n_head nhead num_attention_heads",
    "model.mlp_dim": "intermediate_size ffn_dim d_ff dim_feedforward mlp_hidden_dim",
    "model.patch": "patch_size patch_dim",
    "model.image_size": "img_size image_resolution resolution input_size crop_size imgsz",
    "model.channels": "num_channels in_channels in_chans n_channels",
    "model.vocab_size": "n_vocab num_words num_tokens",
    "model.max_length": "max_len max_seq_length max_seq_len seq_len seq_length sequence_length"
    " block_size context_length max_position_embeddings",
    "model.num_classes": "num_labels num_class n_classes n_labels nb_classes classes",
    "model.dropout": "dropout_rate dropout_prob dropout_p drop_rate drop hidden_dropout_prob"
    " attention_dropout attention_probs_dropout_prob",
    "model.decoder.kv_heads": "num_key_value_heads n_kv_heads num_kv_heads kv_groups",
    "model.decoder.norm_eps": "rms_norm_eps rms_eps",
    "model.decoder.tied": "tie_word_embeddings tie_embeddings tie_weights",
    "model.decoder.window": "sliding_window attention_window",
    "model.decoder.rope_base": "rope_theta theta",
    "model.pool": "pooling global_pool pooling_type",
    "model.weights": "pretrained pretrained_path pretrained_model pretrained_weights weights_path"
    " model_name_or_path model_path init_checkpoint init_from load_from from_pretrained",
    "data.name": "dataset dataset_name data_name task task_name",
    "data.path": "data_dir data_path data_root data_folder dataset_path dataset_dir train_dir"
    " train_file root",
    "data.test_split": "eval_split val_split validation_split",
    "data.max_test": "max_eval_samples max_val_samples limit_val_batches eval_samples",
    "data.augment": "aug augmentation augmentations data_augmentation auto_augment randaugment",
    "data.workers": "num_workers n_workers num_proc dataloader_num_workers"
    " preprocessing_num_workers",
    "data.tokenizer": "vocab vocab_file vocab_path tokenizer_name tokenizer_path"
    " tokenizer_name_or_path",
    "data.lower_case": "do_lower_case lowercase do_lower uncased",
    "optimizer.name": "optim opt optimizer_name optimizer_type",
    "optimizer.learning_rate": "lr base_lr max_lr peak_lr init_lr learning_rate_init eta",
    "lora.rank": "r lora_r lora_rank",
    "lora.alpha": "lora_alpha",
    "lora.modules": "target_modules lora_target_modules",
    "optimizer.b1": "beta1 beta_1 adam_beta1",
    "optimizer.b2": "beta2 beta_2 adam_beta2",
    "optimizer.eps": "epsilon adam_eps adam_epsilon",
    "optimizer.weight_decay": "wd decay l2 weight_decay_rate",
    "optimizer.clip_norm": "max_grad_norm max_norm grad_clip grad_norm_clip clip_grad"
    " clip_grad_norm gradient_clipping gradient_clip_val",
    "optimizer.warmup_steps": "warmup warmup_iters num_warmup_steps",
    "optimizer.schedule": "lr_schedule lr_scheduler lr_scheduler_type scheduler sched",
    "optimizer.accumulation_steps": "gradient_accumulation_steps gradient_accumulation grad_accum"
    " grad_accum_steps accum_steps accumulate_grad_batches",
}
# What there is no key for -> what to do.
_OTHERWISE = {
    "epochs epoch num_epochs n_epochs max_epochs train_epochs num_train_epochs": "a run is counted "
    "in steps: set steps to epochs x training examples / batch_size; `pbr data check` counts them",
    "warmup_ratio warmup_proportion warmup_fraction": "warm-up is counted in steps: set "
    "optimizer.warmup_steps to ratio x steps",
    "warmup_epochs": "warm-up is counted in steps: set optimizer.warmup_steps to epochs x training "
    "examples / batch_size",
    "fp16 bf16 amp half half_precision precision mixed_precision torch_dtype": "set "
    "model.dtype=bfloat16 for activations in 16 bits; configs/llm.py has parameters in 16 bits too",
    "gradient_checkpointing grad_checkpointing activation_checkpointing remat": "set method=remat",
    "sparsity prune_ratio pruning_ratio": "set pruning.keep to 1 - sparsity",
    "freeze frozen freeze_layers freeze_backbone freeze_encoder": "no layer is frozen for a whole "
    "run; method=lean/js50 trains half of the tensors at a time",
    "adapter use_lora": "it is the method lora here, for decoders and for Linen "
    "modules of your own",
    "output_dir out_dir save_dir log_dir logdir workdir work_dir checkpoint_dir output": "a run is "
    "kept in the folder of the flag --workdir",
    "resume resume_from resume_from_checkpoint auto_resume": "the same command resumes the run in "
    "its work directory",
    "device devices gpu gpus num_gpus n_gpu cuda accelerator": "JAX takes the accelerator that is "
    "there; JAX_PLATFORMS=cpu in the environment keeps it on the CPU",
    "label_smoothing label_smoothing_factor smoothing": "the loss is cross-entropy with the "
    "labels as they are",
    "mixup mixup_alpha cutmix cutmix_alpha": "images are not mixed; data.augment names what "
    "changes them",
    "ema ema_decay model_ema": "weights are not averaged: those of the last step are evaluated",
    "nesterov amsgrad": "optimizer.name is sgd, with plain momentum, or adamw",
    "min_lr eta_min end_lr lr_end": "the rate falls to zero by optimizer.schedule, or stays with "
    "constant",
    "eval_batch_size val_batch_size test_batch_size per_device_eval_batch_size": "evaluation takes "
    "batch_size too",
    "patience early_stopping early_stopping_patience load_best_model_at_end": "a run takes all of "
    "its steps, and the best checkpoint is kept and used by default",
    "save_strategy eval_strategy evaluation_strategy logging_strategy": "intervals are in steps: "
    "eval_every, checkpoint_every and log_every",
    "report_to wandb use_wandb tensorboard": "every run writes metrics.jsonl and TensorBoard's "
    "files",
    "variant": "a variant is named behind its file: --config FILE:VARIANT",
    "compile torch_compile jit": "every step is compiled",
    "loss criterion loss_fn": "it is cross-entropy",
}
FOREIGN: dict[str, str] = {
    name: f"it is {key} here" for key, names in _SAME.items() for name in names.split()
} | {name: advice for names, advice in _OTHERWISE.items() for name in names.split()}
"""Name elsewhere -> what to do, a phrase."""


def advice(name: str) -> str | None:
    """What to do about a key that another trainer has, or None."""
    return FOREIGN.get(name.lower().replace("-", "_").rpartition(".")[2])
