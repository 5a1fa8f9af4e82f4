"""What models are made of: encoders, experts, heads, couplings, objectives and loss weightings, one file per part."""
