"""Kernels of our own for the frame step on CUDA, in Triton.

`products`, `attention` and `choosing` contain the kernels; `steps` calls those that `selection`
found correct and faster on the device. Nothing here is imported without Triton.
"""
