"""How good the answers are: feedback metrics, full-catalog ranking, intervals over people and classical baselines."""
