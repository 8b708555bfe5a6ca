"""What the processes of the demo run: `python -m perdure.cli.demo coordinator|worker`, with their orders on stdin."""

from __future__ import annotations

import sys
import threading

from ...errors import PerdureError
from .coordinator import Coordinator
from .crew import Processes, child_orders, print_event, work

orders = child_orders()
if sys.argv[1] == "worker":
    work(**orders, report=print_event, wait=threading.Event().wait, check=lambda: None)
else:
    try:
        Coordinator(Processes(), **orders, emit=print_event).run()
    except PerdureError as error:
        print_event({"event": "failed", "message": str(error)})
        sys.exit(3)
