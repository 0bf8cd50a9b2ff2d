import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline import components
from pipeline.errors import SettingsError
from pipeline.training.losses.kd import KD


def logits(seed, count=7, classes=5):
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1])


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 0.5), (4.0, 0.9), (0.5, 1.0)])
def test_kd_is_hintons_formula(temperature, alpha):
    student, teacher = logits(1), logits(2)
    p, q = softmax(teacher.numpy() / temperature), softmax(student.numpy() / temperature)
    soft = (p * np.log(p / q)).sum(1).mean() * temperature**2
    hard = -np.log(softmax(student.numpy())[np.arange(7), LABELS.numpy()]).mean()
    expected = alpha * soft + (1 - alpha) * hard
    assert float(KD(temperature, alpha)(student, teacher, LABELS)) == pytest.approx(expected, rel=1e-5)


def test_alpha_zero_is_cross_entropy():
    student = logits(1)
    assert float(KD(4.0, 0.0)(student, logits(2), LABELS)) == pytest.approx(
        float(F.cross_entropy(student.float(), LABELS))
    )


def test_a_student_that_equals_its_teacher_has_no_soft_loss():
    assert float(KD(3.0, 1.0)(logits(1), logits(1), LABELS)) == pytest.approx(0.0, abs=1e-6)


def test_the_soft_gradient_is_t_times_the_difference_of_the_softened_answers():
    """d/dz of T^2 KL is T (q - p) / N; at a high T that is the difference of centred logits / classes, whatever T is."""
    student, teacher = logits(1).requires_grad_(), logits(2)
    for temperature in (2.0, 8.0):
        (gradient,) = torch.autograd.grad(KD(temperature, 1.0)(student, teacher, LABELS), student)
        q, p = (torch.softmax(one / temperature, 1) for one in (student, teacher))
        torch.testing.assert_close(gradient, temperature * (q - p).detach() / 7, rtol=1e-4, atol=1e-6)
    small_student, small_teacher = (logits(1) / 100).requires_grad_(), logits(2) / 100
    (gradient,) = torch.autograd.grad(KD(100.0, 1.0)(small_student, small_teacher, LABELS), small_student)
    difference = (small_student - small_teacher).detach()
    torch.testing.assert_close(gradient, (difference - difference.mean(1, keepdim=True)) / 5 / 7, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(("key", "value"), [("temperature", 0.0), ("alpha", 1.5)])
def test_values_out_of_range_are_refused(key, value):
    with pytest.raises(SettingsError, match=f"losses.kd: {key} is {value}"):
        components.build("losses", "kd", {key: value})
