"""The network (encoder, alignment, classifier), distillation losses, and the run folder. Needs torch."""
