"""Scenes, masks and images on disk, tiling, and labels from logits; the only user of rasterio."""
