"""Triton kernels, one module per op: kernel, launcher and launch table. They import torch and triton only."""
