"""The web demo: build a history, see every task's prediction, change one event and watch it change."""
