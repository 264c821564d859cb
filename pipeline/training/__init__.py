"""Pretraining and finetuning: batches, the loop, checkpoints."""
