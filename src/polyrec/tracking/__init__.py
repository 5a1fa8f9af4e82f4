"""What a training was: its data, its cost, and what its log says, for trackers, cards and reports."""
