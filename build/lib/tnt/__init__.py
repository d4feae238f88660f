"""Targeted Negative Training: remove what a language model must not say, and move nothing else."""
