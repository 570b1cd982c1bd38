"""Training of the SSD-2 family: one-pass layout, noise, loss, data, the loop and its scores. Torch only."""
