"""What was measured on this machine, and kept: drives, timings, trials of bits."""
