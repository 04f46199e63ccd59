"""What a model did, for the eye: one HTML page, or the terminal."""
