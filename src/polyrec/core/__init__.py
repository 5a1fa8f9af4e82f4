"""What every package may use: settings, files and manifests. Imports nothing of polyrec."""
