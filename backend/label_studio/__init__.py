"""Label Studio: its API, and the bodies it sends and takes."""
