"""The recommender: configuration, model and processor."""
