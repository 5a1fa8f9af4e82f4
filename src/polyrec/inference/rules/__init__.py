"""Rules of lists: filters, quotas, pins, boosts, one score of several tasks, diversity, exploration."""
