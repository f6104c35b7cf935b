"""`python3 -m src.components.headNode.head_controller` is `headrace head`."""

from src.components._command import run

if __name__ == "__main__":
    run("head")
