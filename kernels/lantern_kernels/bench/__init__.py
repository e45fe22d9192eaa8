"""What the losses cost, against the floor and against peers: ``python -m lantern_kernels.bench``."""
