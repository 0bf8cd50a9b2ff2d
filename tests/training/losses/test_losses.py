"""Every file of `losses/` keeps the contract of `types.DistillationLoss`."""

import pytest
import torch

from pipeline import components


@pytest.fixture(params=components.names("losses"))
def loss(request):
    return components.build("losses", request.param, {})


def batch(count=12, classes=5, dtype=torch.float32):
    chance = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(count, classes, generator=chance).to(dtype) for _ in range(2))
    return student.requires_grad_(), teacher, torch.randint(0, classes, (count,), generator=chance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_a_finite_float32_scalar(loss, dtype):
    value = loss(*batch(dtype=dtype))
    assert value.shape == () and value.dtype == torch.float32 and bool(torch.isfinite(value))


def test_the_student_learns_and_the_teacher_does_not(loss):
    student, teacher, labels = batch()
    teacher.requires_grad_()
    loss(student, teacher.detach(), labels).backward()
    assert student.grad is not None and bool(student.grad.abs().sum() > 0) and teacher.grad is None


def test_it_is_lowest_where_teacher_and_labels_agree_with_the_student(loss):
    student, _, labels = batch()
    right = torch.nn.functional.one_hot(labels, 5).float() * 8
    assert loss(right, right, labels) < loss(student, right, labels)


def test_it_does_not_depend_on_the_order_of_the_images(loss):
    student, teacher, labels = batch()
    order = torch.randperm(12)
    torch.testing.assert_close(loss(student[order], teacher[order], labels[order]), loss(student, teacher, labels))
