"""Policies decide which masks to fill. One file each; siblings never import each other."""
