"""What tests of the torch runtime share."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

INSTALLED = importlib.util.find_spec("torch") is not None
collect_ignore_glob = [] if INSTALLED else ["test_*.py", "contrib"]
"""Without torch there is nothing to test here."""


@pytest.fixture
def check_gradients(parse):
    """Return a check of a graph's gradients against finite differences, in float64 (`torch.autograd.gradcheck`)."""
    import torch

    from graphopt.runtimes._torch.module import OnnxModule

    def check(text, feeds, output=None, **options):
        """Differentiate the floats among `feeds` (arrays by input name) through `output`, by default the first."""
        module = OnnxModule(parse(text))
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in feeds.items()}
        names = [name for name, tensor in tensors.items() if tensor.dtype == torch.float64]
        assert names, "a gradient check wants float64 inputs"

        def function(*moved):
            outputs = module(tensors | dict(zip(names, moved, strict=True)))
            return outputs[output] if output else next(iter(outputs.values()))

        inputs = [tensors[name].requires_grad_() for name in names]
        assert torch.autograd.gradcheck(function, inputs, **options)

    return check
