"""Running a bundle on a device: backends, scenes of any size, streams of frames. No torch."""
