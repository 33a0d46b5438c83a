"""Make untrained networks with batch normalization react to their input."""

from __future__ import annotations

from torch import Tensor, nn, no_grad
from torch.nn.modules.batchnorm import _BatchNorm


def settled(network: nn.Module, inputs: dict[str, Tensor]) -> nn.Module:
    """Return the network in inference mode, with the statistics that its batch normalizations meet on `inputs`.

    With the statistics of a fresh network, mean 0 and variance 1, every layer shrinks the signal: a deep untrained
    network then answers every input alike, and no comparison of two such networks would notice a fault.

    Args:
        network: it is changed.
        inputs: keyword arguments of its forward; several samples.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the plain average over all batches seen, here one
    with no_grad():
        network.train()(**inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.num_batches_tracked.zero_()
    return network.eval()
