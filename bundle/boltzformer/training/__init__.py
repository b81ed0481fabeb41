"""Ignite handlers around a training run: checkpoints, resume, progress."""
