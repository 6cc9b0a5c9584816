"""Caches run the layers and decide which positions are computed. One file each; siblings never import each other."""
