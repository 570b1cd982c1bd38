"""Numerical kernels that device and node must agree on: noise, renoise, embed, projection, fusion, logit codec."""
