"""What every training loop needs and no stage knows: configuration, randomness, AdamW, checkpoints, logs."""
