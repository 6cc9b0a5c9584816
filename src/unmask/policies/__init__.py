"""Policies decide which masked positions to commit. One file each; siblings never import each other."""
