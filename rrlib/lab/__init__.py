"""The laboratory of this book: what its chapters make, keep, print and publish."""
