"""The paper's study: train networks with each loss on real data and compare accuracy and calibration.

data.py (data sets), splits.py (what a run is trained and evaluated on), augmentation.py (shifts and flips),
models.py (networks), network.py (what they share: penalties, initial weights, batch norm), optimiser.py
(Keras's SGD, the paper's learning rates), training.py (one run), compare.py (losses x seeds, the results
file), cli.py (the command ``lr-relax``). Needs ``pip install "lr-relax[study]"``.
"""
