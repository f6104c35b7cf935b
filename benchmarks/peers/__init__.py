"""What Headrace is measured against: how each is installed, in an environment of its own, and how it is started."""
