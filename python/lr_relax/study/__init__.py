"""The paper's study: train networks with each loss on real data and compare accuracy and calibration.

What a run is: config.py (its options), data.py (data sets), splits.py (what it is trained and evaluated on),
augmentation.py (shifts and flips), models.py and network.py (the networks; penalties, initial weights, batch
norm), objective.py (the losses), optimiser.py (Keras's SGD, the learning rates). How it goes: training.py (an
epoch), processes.py (several processes), checkpoint.py and atomic.py (files), run.py (all of it, resumable),
results.py (what it gives). Many of them: search.py (the best alpha), engines.py and grid.py (here or on a
cluster), compare.py (the demo). What is kept and shown: tracking.py, mlflow_store.py and tracked.py (MLflow,
TensorBoard), summary.py, tables.py and figures.py. cli/ is the command ``lr-relax``; README.md tells how to
use it. Needs ``pip install "lr-relax[study]"``.
"""
