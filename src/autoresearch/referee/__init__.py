"""The trusted side of a trial: the clock, the targets, the verdict on what a run was worth."""
