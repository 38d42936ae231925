"""Variants of the trainers: each class says only what it changes."""
