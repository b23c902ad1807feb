"""
Two models in pictures
======================

Reliability diagrams of two classifiers of scikit-learn's digits, with what a calibrated model would show by
chance, and what happens if the least confident predictions are left to a human.
"""

from lr_relax.metrics import chance_level, reliability_curve, risk_coverage_curve
from lr_relax.plots import compare_reliability, compare_risk_coverage, reliability_diagrams
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB

images, digits = load_digits(return_X_y=True)
images, test_images, digits, test_digits = images[:900] / 16, images[900:] / 16, digits[:900], digits[900:]
models = {"logistic regression": LogisticRegression(), "naive Bayes": GaussianNB(var_smoothing=0.1)}
predictions = {name: model.fit(images, digits).predict_proba(test_images) for name, model in models.items()}

# %%
# Side by side
# ------------
#
# Naive Bayes is overconfident, the linear model underconfident where it is not sure. The gray bars are the
# accuracies that a calibrated model would show by chance: a bin outside of its bar is evidence against
# calibration.

curves = {name: reliability_curve(p, test_digits) for name, p in predictions.items()}
chance = {name: chance_level(p, test_digits) for name, p in predictions.items()}
figure = reliability_diagrams(curves, chance=chance, histogram="log")

# %%
# In one diagram
# --------------

figure = compare_reliability(curves).figure

# %%
# Which predictions to trust
# --------------------------
#
# The risk is the share of wrong predictions among the most confident ones. Here calibration does not count,
# only the order.

figure = compare_risk_coverage(
    {name: risk_coverage_curve(p, test_digits) for name, p in predictions.items()}
).figure
