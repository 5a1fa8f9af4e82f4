"""The Hub: what leaves and what stays, one commit for a model and its processor, loading that trusts nobody."""
