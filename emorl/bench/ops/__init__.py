"""The suite of the operators: each against plain PyTorch, `torch.compile` and others' forms."""
