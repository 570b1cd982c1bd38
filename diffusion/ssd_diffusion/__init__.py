"""The simplex diffusion LM: schedule, window, sampler, ensemble, scores (numpy only) and its torch side.

Importing the package loads nothing; import the module you need. Only `models`, `training` and `export` import torch.
"""
