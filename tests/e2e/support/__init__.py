"""Code that the end-to-end tests and the demo share."""
