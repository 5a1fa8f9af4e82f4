"""The version of this package, for what records it: manifests, cards, requests to the Hub."""

__version__ = "0.1.0"
