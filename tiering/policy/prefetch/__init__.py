"""What to read ahead (pure): the order of modules (module_order), the next dense blocks (cycle), which predictor of
experts guesses (predictor_choice; runtime/experts/guessing.py guesses), and whether guessing pays (speculation)."""
