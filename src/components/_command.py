"""What the modules beside this one share. They are the long way to write `headrace head` and `headrace scheduler`."""

import os
import sys


def run(command):
    """Run one command of the command line from a checkout, installed or not."""
    src = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.path.insert(0, src)
    # The processes that the command starts must find the same code.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [src, os.environ.get("PYTHONPATH")]))
    if sys.version_info < (3, 11):  # noqa: UP036 - whoever has an older Python comes by here
        sys.exit("Error: Headrace needs Python 3.11 or newer.")
    try:
        from headrace.cli import main
    except ModuleNotFoundError as e:
        sys.exit(f"Error: The module {e.name!r} is not installed. In the checkout, run: pip install -e '.[cpu]'")
    main([command, *sys.argv[1:]])
