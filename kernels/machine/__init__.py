"""What this host can do: drives, memory, processors, control groups. Imports kernels/io and kernels/memory."""
