"""The engines. Their packages are imported only when they are used: see replica/opening.py."""
