"""The suite of EfficientMORL's time and memory plots (its figures 10 and 22)."""
