"""golf: train once, checkpoint at phase boundaries, answer every later question from the checkpoints.

Importing golf imports neither torch nor pandas.
"""
