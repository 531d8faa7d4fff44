"""Checkpoints: what a run leaves behind when it is stopped, and how it goes on."""
