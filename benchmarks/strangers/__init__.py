"""What hostile.py is made of: the inputs, who sends them, who is disturbed, and how that is measured."""
