"""Triton kernels. The module of an op holds its kernel, launcher and launch table; ``launch`` holds what the launchers
share, ``records`` the arguments that travel together. All of them import torch and triton only."""
