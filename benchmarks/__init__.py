"""What developers measure: the parts of a forward pass. Not in the package; run from the root of the repository."""
