"""One engine a file; each runs one family of models."""
