"""cotdistill: an open, reproducible study of CoT-augmented distillation (arXiv 2406.14511)."""

__version__ = "0.1.0"
