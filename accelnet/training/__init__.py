"""State, step, loop, events, checkpoint, record: how an experiment is trained."""
