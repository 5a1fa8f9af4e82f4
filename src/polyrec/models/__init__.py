"""The models: configuration, modeling and processing files, as in transformers, and what all of them share."""
