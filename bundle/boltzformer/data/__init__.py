"""Volumes and label maps in, (slice, prompt, mask) examples out."""
