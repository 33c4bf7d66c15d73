"""Products of one layer's experts, on the CPU and on a GPU. Imports kernels/weights, kernels/cuda and above."""
