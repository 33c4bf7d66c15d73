"""Many requests on one model: every weight that is read serves all that wait, and each answer is as if alone."""
