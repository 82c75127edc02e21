"""Other packages' checkpoints and modules."""
