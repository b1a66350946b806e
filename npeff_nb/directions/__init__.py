"""Components as edits of the model: lifted to parameter space, applied, measured, undone."""
