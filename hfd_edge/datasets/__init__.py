"""Folders of co-registered SAR, optical and label tiles, and how public data sets become one."""
