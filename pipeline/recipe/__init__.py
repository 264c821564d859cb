"""Every choice that shapes an artifact, with its checks, and the presets."""
