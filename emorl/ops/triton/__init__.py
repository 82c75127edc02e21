"""Triton kernels; imported when first launched, since importing Triton is slow."""
