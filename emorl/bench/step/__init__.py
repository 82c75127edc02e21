"""The suite of training steps and inferences: as published, and as they grow."""
