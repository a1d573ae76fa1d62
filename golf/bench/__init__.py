"""Speed: of kernels, training steps, starts, checkpoints and evaluation, beside what the machine can do at most."""
