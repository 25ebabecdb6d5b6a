"""Triton kernels, one module per op: kernel, launcher and launch table; ``launch`` is what the launchers share. They
import torch and triton only."""
