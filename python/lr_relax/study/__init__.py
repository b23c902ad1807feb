"""The paper's study: train networks with each loss on real data and compare accuracy and calibration.

A run: config (options), data, splits, augmentation, network, models, optimizer, objective, training,
processes (DDP), folder (the store), run. Many runs: engines, grid, compare. Output: report (tables), figures,
tracking. cli is the command ``lr-relax``; docs/replication/study.md is the user's guide. Needs ``pip install
"lr-relax[study]"``.
"""
