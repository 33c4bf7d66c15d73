"""What to read ahead, and whether guessing pays (pure).

route keeps the order of modules. cycle decides the next dense blocks. predictor_choice selects the predictor of
experts, and runtime/experts/guessing.py runs it. speculation decides whether guessing pays.
"""
