"""The losses and metrics inside other frameworks, as their users call them."""

import pickle
from pathlib import Path
from typing import Any

import lr_relax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lr_relax.metrics import (
    TemperatureScaling,
    accuracy,
    brier_decomposition,
    brier_score,
    classwise_calibration_error,
    expected_calibration_error,
    negative_log_likelihood,
)
from torch import Tensor, nn

lightning = pytest.importorskip("lightning.pytorch")
sklearn = pytest.importorskip("sklearn")
timm_data = pytest.importorskip("timm.data")
transformers = pytest.importorskip("transformers")


# transformers


class Tokens(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Sequences of different lengths, padded with ignored labels."""

    def __init__(self, causal: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randint(7, (8, 6), generator=generator)
        self.labels = self.inputs.clone() if causal else torch.randint(7, (8, 6), generator=generator)
        for row, length in enumerate([6, 1, 3, 6, 2, 5, 6, 4]):
            self.labels[row, length:] = -100

    def __len__(self) -> int:
        return 8

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"input_ids": self.inputs[row], "labels": self.labels[row]}


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(7, 7)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.embed(input_ids)}


def trained(loss: Any, causal: bool, accumulation: int, folder: Path) -> Tensor:
    """The gradient of one optimizer step over 8 sequences, from the change of the weights."""
    options = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    model = Tagger()
    before = model.embed.weight.detach().clone()
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(folder), max_steps=1, optim="sgd", learning_rate=1.0, max_grad_norm=0.0,
            lr_scheduler_type="constant", report_to=[], use_cpu=True, save_strategy="no",
            disable_tqdm=True, dataloader_pin_memory=False, **options,
        ),
        train_dataset=Tokens(causal),
        compute_loss_func=loss,
    )  # fmt: skip
    trainer.train()
    return before - model.embed.weight.detach()


@pytest.mark.filterwarnings("ignore")  # of transformers
@pytest.mark.parametrize("causal", [False, True])
def test_trainer(causal: bool, tmp_path: Path) -> None:
    """Gradients do not depend on the number of batches in an optimizer step."""
    from lr_relax.integrations.transformers import loss_for

    criterion = lr_relax.LabelRelaxationLoss(alpha=0.1)
    got = [trained(loss_for(criterion, causal=causal), causal, n, tmp_path) for n in (1, 2, 4)]
    assert got[0].abs().max() > 0
    for other in got[1:]:
        torch.testing.assert_close(other, got[0], rtol=0, atol=1e-6)
    data, model = Tokens(causal), Tagger()
    logits, labels = model(data.inputs)["logits"], data.labels
    if causal:
        logits, labels = logits[:, :-1], labels[:, 1:]
    total = lr_relax.LabelRelaxationLoss(alpha=0.1, reduction="sum")(logits.flatten(0, 1), labels.flatten())
    counted = (data.labels != -100).sum()  # as the trainer counts, also for causal models
    (total / counted).backward()
    torch.testing.assert_close(got[0], model.embed.weight.grad, rtol=0, atol=1e-6)


def test_loss_for() -> None:
    from lr_relax.integrations.transformers import loss_for

    logits, labels = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    labels[0, 3:] = -100
    for criterion in (lr_relax.LabelRelaxationLoss(), nn.CrossEntropyLoss()):
        for outputs in ({"logits": logits}, (logits,)):
            mean = loss_for(criterion)(outputs, labels)
            assert mean == criterion(logits.flatten(0, 1), labels.flatten())
            torch.testing.assert_close(loss_for(criterion)(outputs, labels, num_items_in_batch=8), mean)
            shifted = loss_for(criterion, causal=True)(outputs, labels, torch.tensor(6))
            expected = criterion(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            torch.testing.assert_close(shifted, expected)
        assert criterion.reduction == "mean"
    per_device = loss_for(nn.CrossEntropyLoss())({"logits": logits}, labels, torch.tensor([[4], [4]]))
    torch.testing.assert_close(per_device, loss_for(nn.CrossEntropyLoss())({"logits": logits}, labels))
    with pytest.raises(ValueError, match=r"labels.*\(2, 5\).*got \(2, 5, 7\)"):
        loss_for(nn.CrossEntropyLoss())({"logits": logits}, logits.softmax(-1))
    with pytest.raises(TypeError, match="`criterion`"):
        loss_for(nn.Linear(1, 1))


# Lightning


class Classifier(lightning.LightningModule):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)
        self.criterion = lr_relax.LabelRelaxationLoss(alpha=0.1)
        self.ece = lr_relax.metrics.CalibrationError(from_logits=True)

    def training_step(self, batch: Any, index: int) -> Tensor:
        x, y = batch
        loss: Tensor = self.criterion(self.layer(x), y)
        return loss

    def validation_step(self, batch: Any, index: int) -> dict[str, Tensor]:
        x, y = batch
        logits = self.layer(x)
        self.ece(logits, y)
        self.log("ece", self.ece)
        return {"logits": logits, "target": y}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.5)


@pytest.mark.filterwarnings("ignore")  # of Lightning
def test_lightning(tmp_path: Path) -> None:
    from lr_relax.integrations.lightning import FitTemperature

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4, generator=generator)
    y = (x[:, :3] + torch.randn(64, 3, generator=generator)).argmax(1)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=10)
    callback, model = FitTemperature(), Classifier()
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[callback],
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model, loader, loader)
    logits = model.layer(x).detach()
    expected = TemperatureScaling().fit(logits, y).temperature.item()
    assert callback.scaling.temperature.item() == pytest.approx(expected, rel=1e-6)
    assert trainer.callback_metrics["temperature"].item() == pytest.approx(expected, rel=1e-6)
    ece = expected_calibration_error(logits, y, from_logits=True)
    assert trainer.callback_metrics["ece"].item() == pytest.approx(ece.item(), abs=1e-6)
    with pytest.raises(TypeError, match="validation_step"):
        callback.on_validation_batch_end(trainer, model, None, None, 0)


# Mixup and CutMix


def test_mixup_of_timm() -> None:
    """timm's targets are distributions: the loss is the cross-entropy less their entropy for alpha = 0."""
    mixup = timm_data.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=5)
    np.random.seed(0)  # noqa: NPY002 (timm's own source)
    _, target = mixup(torch.rand(8, 3, 8, 8), torch.arange(8) % 5)
    logits = torch.randn(8, 5, requires_grad=True)
    loss = lr_relax.LabelRelaxationLoss(alpha=0.0)(logits, target)
    entropy = -torch.special.xlogy(target, target).sum(1).mean()
    torch.testing.assert_close(loss, F.cross_entropy(logits, target) - entropy)
    assert lr_relax.LabelRelaxationLoss(alpha=0.3)(logits, target) < loss


def test_mixup_of_torchvision() -> None:
    from torchvision.transforms import v2

    torch.manual_seed(0)
    labels = torch.arange(8) % 5
    for transform in (v2.MixUp(num_classes=5, alpha=0.8), v2.CutMix(num_classes=5, alpha=1.0)):
        _, target = transform(torch.rand(8, 3, 8, 8), labels)
        logits = torch.randn(8, 5)
        share = (target * F.one_hot(labels, 5)).sum(1)
        share = torch.where(labels == labels.roll(1), 1.0, share)
        mixed = lr_relax.MixupLabelRelaxationLoss(alpha=0.2)(logits, labels, labels.roll(1), share)
        torch.testing.assert_close(lr_relax.LabelRelaxationLoss(alpha=0.2)(logits, target), mixed)


# scikit-learn


def test_scorer() -> None:
    from lr_relax.integrations.sklearn import scorer
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import brier_score_loss
    from sklearn.model_selection import GridSearchCV, cross_val_score

    X, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    score = scorer(brier_score)
    pickle.loads(pickle.dumps(score))
    for labels in (y, names, y + 7):
        model = LogisticRegression(max_iter=500).fit(X[::2], labels[::2])
        expected = brier_score_loss(labels[1::2], model.predict_proba(X[1::2]))
        assert score(model, X[1::2], labels[1::2]) == pytest.approx(-expected)
        assert np.isfinite(cross_val_score(model, X, labels, scoring=score, error_score="raise")).all()
    assert scorer(accuracy, top_k=1)(model, X, y + 7) == model.score(X, y + 7)
    two = y < 2
    model = LogisticRegression().fit(X[two], names[two])
    assert score(model, X[two], names[two]) < 0
    search = GridSearchCV(
        LogisticRegression(max_iter=500),
        {"C": [1e-3, 1]},
        scoring=scorer(expected_calibration_error, n_bins=10),
    )
    assert search.fit(X, names).best_score_ > -0.3
    with pytest.raises(ValueError, match=r"`average`.*'macro'.*None"):
        scorer(classwise_calibration_error, average=None)
    with pytest.raises(TypeError, match=r"`metric`.*single number.*BrierDecomposition"):
        scorer(brier_decomposition)(model, X[two], names[two])


def test_temperature_scaled_classifier() -> None:
    from lr_relax.integrations.sklearn import TemperatureScaledClassifier
    from sklearn.base import clone
    from sklearn.datasets import load_digits
    from sklearn.metrics import log_loss
    from sklearn.model_selection import cross_val_predict
    from sklearn.naive_bayes import GaussianNB
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X, y = load_digits(return_X_y=True)
    names = np.array(list("abcdefghij"))[y]
    pipeline = make_pipeline(StandardScaler(), TemperatureScaledClassifier(GaussianNB(var_smoothing=1e-2)))
    model = clone(pipeline).fit(X[::2], names[::2])
    assert model.score(X[1::2], names[1::2]) > 0.7
    scaled, plain = model.predict_proba(X[1::2]), GaussianNB(var_smoothing=1e-2).fit(X[::2], y[::2])
    assert model.get_params()["temperaturescaledclassifier__method"] == "nll"
    np.testing.assert_allclose(scaled.sum(1), 1)
    before = log_loss(y[1::2], plain.predict_proba(X[1::2]))
    assert negative_log_likelihood(scaled, names[1::2], labels=model.classes_) < 0.6 * before
    inner = model[-1]
    Z = model[0].transform(X[::2])
    p = cross_val_predict(GaussianNB(var_smoothing=1e-2), Z, names[::2], method="predict_proba")
    kept = p[np.arange(len(Z)), y[::2]] > 0  # the others have no likelihood
    logits = np.log(p[kept].clip(np.finfo(np.float64).tiny))
    fitted = TemperatureScaling().fit(logits, y[::2][kept]).temperature.item()
    assert inner.temperature_ == pytest.approx(fitted, rel=1e-6)
    held_out = TemperatureScaledClassifier(plain, cv="prefit").fit(X[1::2], y[1::2])
    assert held_out.estimator_ is plain


@pytest.mark.filterwarnings("ignore")  # of scikit-learn, about the missing class
def test_class_that_folds_lack() -> None:
    from lr_relax.integrations.sklearn import TemperatureScaledClassifier
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    X, y = load_iris(return_X_y=True)
    plain = TemperatureScaledClassifier(LogisticRegression(max_iter=500)).fit(X, y)
    rare = TemperatureScaledClassifier(LogisticRegression(max_iter=500))
    rare.fit(np.vstack([X, X[:1]]), np.append(y, 3))
    assert rare.temperature_ == pytest.approx(plain.temperature_, rel=0.3)
    assert rare.predict_proba(X).shape == (150, 4)


@pytest.mark.filterwarnings("ignore")  # temperatures at the end of their range
def test_check_estimator() -> None:
    from lr_relax.integrations.sklearn import TemperatureScaledClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.utils.estimator_checks import check_estimator

    check_estimator(TemperatureScaledClassifier(LogisticRegression()))
