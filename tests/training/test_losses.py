"""Losses and penalties, against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from graphopt.errors import UsageError, UserError
from graphopt.training import losses

RNG = np.random.default_rng(0)
SCORES = torch.from_numpy(RNG.standard_normal((6, 4)).astype(np.float32))
LABELS = torch.tensor([0, 1, 2, 3, 1, 0])


def loss(name, target, output=SCORES, smoothing=0.0):
    return float(losses.task_loss(name, target, smoothing)({"y": output}, target))


def test_cross_entropy():
    log = torch.log_softmax(SCORES, 1)
    assert loss("auto", LABELS) == pytest.approx(-float(log[range(6), LABELS].mean()), rel=1e-5)
    smooth = 0.9 * -log[range(6), LABELS].mean() - 0.1 * log.mean()
    assert loss("cross-entropy", LABELS, smoothing=0.1) == pytest.approx(float(smooth), rel=1e-5)


def test_regression():
    target = torch.zeros(6, 4)
    assert loss("auto", target) == pytest.approx(float(SCORES.square().mean()))
    assert loss("l1", target) == pytest.approx(float(SCORES.abs().mean()))
    assert loss("cosine", SCORES * 3) == pytest.approx(0, abs=1e-6)
    assert loss("mse", torch.zeros(6), SCORES[:, :1]) == pytest.approx(float(SCORES[:, 0].square().mean()))


def test_a_function_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "myloss.py").write_text("def f(outputs, target):\n    return outputs['y'].sum() * 0 + 7\n")
    monkeypatch.chdir(tmp_path)
    assert loss("myloss:f", LABELS) == 7


def test_what_does_not_fit():
    with pytest.raises(UsageError, match="unknown loss 'cross_entropy'; did you mean 'cross-entropy'"):
        loss("cross_entropy", LABELS)
    with pytest.raises(UserError, match=r"labels lie in 0 to 3, but the model has 3 classes"):
        loss("cross-entropy", LABELS, SCORES[:, :3])
    with pytest.raises(UserError, match=r"targets of shape \[5, 4\] do not fit"):
        loss("mse", torch.zeros(5, 4))
    with pytest.raises(UserError, match="do not fit"):
        loss("cross-entropy", LABELS[:5])


def test_softened_classes():
    other = SCORES.flip(0)
    t = 3.0
    p, q = torch.softmax(other / t, 1), torch.log_softmax(SCORES / t, 1)
    expected = t * t * (p * (p.log() - q)).sum(1).mean()
    assert float(losses.softened(SCORES, other, t)) == pytest.approx(float(expected), rel=1e-5)
    assert float(losses.softened(SCORES, SCORES, t)) == pytest.approx(0, abs=1e-6)


def test_attention_maps_ignore_the_number_of_channels():
    x = torch.from_numpy(RNG.standard_normal((2, 3, 4, 4)).astype(np.float32))
    assert float(losses.attention_difference(x, torch.cat([x, x], 1) * 5)) == pytest.approx(0, abs=1e-6)
    assert float(losses.attention_difference(x, x.flip(-1))) > 0.01


def test_penalties():
    w = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert float(losses.penalty([(w, 0)], 0.1, 0.0)) == pytest.approx(0.7)
    assert float(losses.penalty([(w, 0)], 0.0, 2.0)) == pytest.approx(2 * 2**0.5 * 5)
    assert float(losses.penalty([(w, 1)], 0.0, 2.0)) == pytest.approx(2 * 2**0.5 * 7)
    assert losses.penalty([(w, 0)], 0.0, 0.0) == 0
