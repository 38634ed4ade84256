"""The exact score against a loop over single images and scikit-learn."""

import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score

from vit_gelu.training.metrics import ExactScore, sum_dtype


@pytest.mark.parametrize(("classes", "sizes"), [(10, [4, 4, 3]), (7, [1, 10]), (100, [64, 64, 0, 5])])
def test_score_equals_sklearn(classes, sizes):
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(sum(sizes), classes, generator=generator)
    labels = torch.randint(classes, (sum(sizes),), generator=generator)
    metric = ExactScore(classes)
    for x, y in zip(logits.split(sizes), labels.split(sizes), strict=True):
        metric.update(x, y)
    score = metric.compute()
    probabilities = logits.double().softmax(1).numpy()
    everything = list(range(classes))
    assert score.n == sum(sizes)
    assert score.correct == accuracy_score(labels, logits.argmax(1), normalize=False)
    assert score.correct5 == top_k_accuracy_score(
        labels, probabilities, k=5, labels=everything, normalize=False
    )
    assert score.top1 == score.correct / score.n
    assert score.loss == pytest.approx(log_loss(labels, probabilities, labels=everything), rel=1e-5)


def test_few_classes_and_low_precision():
    metric = ExactScore(3)
    metric.update(torch.tensor([[1.0, 2, 3], [3, 2, 1]], dtype=torch.bfloat16), torch.tensor([2, 1]))
    score = metric.compute()
    assert (score.top1, score.top5, score.n) == (0.5, 1.0, 2)


def test_counts_stay_exact_where_float32_cannot():
    metric = ExactScore(2)
    metric.correct += 2**24
    metric.count += 2**24
    metric.update(torch.tensor([[0.0, 1.0]]), torch.tensor([1]))
    assert metric.compute().correct == 2**24 + 1


def test_empty_split_is_refused():
    metric = ExactScore(2)
    metric.update(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="no image was evaluated"):
        metric.compute()


def test_reset_starts_anew():
    metric = ExactScore(2)
    metric.update(torch.tensor([[0.0, 1.0]]), torch.tensor([1]))
    metric.reset()
    metric.update(torch.tensor([[0.0, 1.0]] * 3), torch.tensor([0, 0, 1]))
    assert (metric.compute().correct, metric.compute().n) == (1, 3)


def test_a_device_without_float64_sums_in_float32():
    """Moved as Lightning moves it; the meta device stands for the other one."""
    assert sum_dtype(torch.device("cpu")) == sum_dtype(torch.device("cuda")) == torch.float64
    dtype = sum_dtype(torch.device("mps"))
    generator = torch.Generator().manual_seed(0)
    one, other = ExactScore(10), ExactScore(10, dtype)
    for _ in range(200):
        batch = torch.randn(50, 10, generator=generator), torch.randint(10, (50,), generator=generator)
        one.update(*batch)
        other.update(*batch)
    assert other.compute()[:2] == one.compute()[:2]
    assert other.compute().loss == pytest.approx(one.compute().loss, rel=1e-6)
    moved = ExactScore(10, dtype).to("meta")
    moved.update(torch.zeros(4, 10, device="meta"), torch.zeros(4, dtype=torch.int64, device="meta"))
    assert {t.dtype for t in moved.metric_state.values()} == {torch.int64, torch.float32}
