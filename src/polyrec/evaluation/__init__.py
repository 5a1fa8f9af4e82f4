"""How good the predictions are: feedback metrics, full-catalog ranking, intervals over users and classical
baselines."""
