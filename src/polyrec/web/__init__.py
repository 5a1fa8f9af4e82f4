"""The web demo: build a history, see every task's answer, change one event and watch it change."""
