"""The paper's study: train networks with each loss on real data and compare accuracy and calibration.

data.py (data sets and their splits), models.py (networks), network.py (what they share: penalties, initial
weights, batch norm), training.py (one run), compare.py (losses x seeds, the results file), cli.py (the
command ``lr-relax``). Needs ``pip install "lr-relax[study]"``.
"""
