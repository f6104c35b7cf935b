"""What is around the programs: what Headrace is measured against, how each is installed and started, load, models."""
