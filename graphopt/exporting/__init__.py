"""From PyTorch to ONNX. What imports this is told if PyTorch is missing, so only `graphopt.export` and verbs do, late."""

from __future__ import annotations

import importlib.util

from graphopt.errors import UserError

if importlib.util.find_spec("torch") is None:
    raise UserError("export needs PyTorch; run pip install 'graphopt[torch]'")
