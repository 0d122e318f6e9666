from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_precision, multiclass_recall

from convlens_training.errors import TrainingError
from convlens_training.evaluation import ClassFigures, Evaluation


def logits(*answers: int, classes: int = 3) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[list(answers)] * 2


# Six images: a a a b b c; answered a a b b b a.
SIX = Evaluation(("a", "b", "c"), np.array([0, 0, 0, 1, 1, 2]), logits(0, 0, 1, 1, 1, 0))


def test_by_hand():
    assert SIX.answers.tolist() == [0, 0, 1, 1, 1, 0]
    assert SIX.confusion.tolist() == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert SIX.accuracy == pytest.approx(4 / 6)
    assert SIX.accuracy_error == pytest.approx(math.sqrt(4 / 6 * 2 / 6 / 6))
    a, b, c = SIX.per_class()
    assert a == ClassFigures("a", 2 / 3, 2 / 3, 2 / 3, 3)
    assert b == ClassFigures("b", 2 / 3, 1.0, 0.8, 2)
    assert (c.recall, c.f1, c.support) == (0.0, 0.0, 1)
    assert math.isnan(c.precision)


def test_as_torch_and_torchmetrics_compute_it():
    random = np.random.default_rng(5)
    truth, values = random.integers(0, 7, 400), random.normal(0, 3, (400, 7)).astype(np.float32)
    values[np.arange(400), truth] += 3
    evaluation = Evaluation(tuple("abcdefg"), truth, values)
    target, predicted = torch.from_numpy(truth), torch.from_numpy(values)
    assert evaluation.loss == pytest.approx(float(torch.nn.functional.cross_entropy(predicted, target)), rel=1e-5)
    np.testing.assert_allclose(evaluation.scores, predicted.softmax(1).numpy(), rtol=1e-5, atol=1e-7)
    for name, theirs in (
        ("precision", multiclass_precision),
        ("recall", multiclass_recall),
        ("f1", multiclass_f1_score),
    ):
        ours = [getattr(figures, name) for figures in evaluation.per_class()]
        np.testing.assert_allclose(ours, theirs(predicted, target, 7, average=None).numpy(), rtol=1e-6)


def test_huge_logits_do_not_overflow():
    evaluation = Evaluation(("a", "b"), np.array([0]), np.array([[1e30, -1e30]], np.float32))
    assert evaluation.loss == 0
    assert evaluation.scores.tolist() == [[1, 0]]


def test_saved_and_loaded(tmp_path):
    evaluation = Evaluation(("koala", "Käse 奶酪", "c"), SIX.truth, SIX.logits)
    evaluation.save(tmp_path / "evaluation.npz")
    loaded = Evaluation.load(tmp_path / "evaluation.npz")
    assert loaded.labels == evaluation.labels
    assert loaded.truth.dtype == np.int64
    np.testing.assert_array_equal(loaded.truth, evaluation.truth)
    np.testing.assert_array_equal(loaded.logits, evaluation.logits)
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation.npz"]


def test_what_cannot_be_loaded_is_named(tmp_path):
    path = tmp_path / "evaluation.npz"
    with pytest.raises(TrainingError, match=r"evaluation\.npz is no saved evaluation: .*No such file"):
        Evaluation.load(path)
    SIX.save(path)
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(TrainingError, match=r"evaluation\.npz is no saved evaluation"):
            Evaluation.load(path)
    with path.open("wb") as file:
        np.savez(file, truth=SIX.truth)
    with pytest.raises(TrainingError, match=r"is no saved evaluation: .*labels"):
        Evaluation.load(path)


@pytest.mark.parametrize(
    ("truth", "values", "text"),
    [
        (np.array([0, 1]), logits(0), r"logits of shape \(1, 3\) and truth of shape \(2,\)"),
        (np.array([0]), logits(0, classes=2), r"needs N × 3 and N, one column for each label"),
        (np.zeros(0, np.int64), np.zeros((0, 3), np.float32), "N at least 1"),
        (np.array([3]), logits(0), r"has class 3 … 3, but its 3 labels are for 0 … 2"),
        (np.array([-1]), logits(0), r"has class -1"),
        (np.array([0]), np.full((1, 3), np.nan, np.float32), "logits that are no number"),
    ],
)
def test_what_does_not_fit_is_refused(truth, values, text):
    with pytest.raises(TrainingError, match=text):
        Evaluation(("a", "b", "c"), truth, values)
