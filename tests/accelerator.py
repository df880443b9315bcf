"""A stand-in for a GPU's tensors."""

import torch


class OnAccelerator(torch.Tensor):
    """What a GPU gives: NumPy cannot have it before it is moved."""

    def numpy(self):
        raise TypeError("can't convert a tensor of another device to numpy")

    def cpu(self):
        return self.as_subclass(torch.Tensor)
