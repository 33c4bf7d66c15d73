"""Runs a command, or code after it, in a process that is there for it. Prints as JSON what is imported at the end.

Arguments: code to run afterwards, and the command's arguments.
"""

import gc
import json
import sys
from types import ModuleType
from typing import Any

from penstock.runtime.cli.main import main
from penstock.runtime.cli.quick_imports import own_process

own_process()
code = main(sys.argv[2:]) if len(sys.argv) > 2 else 0
said: dict[str, Any] = {}
exec(sys.argv[1])
imported = [name for name, module in sys.modules.items() if type(module) is ModuleType or not name.startswith("torch")]
deferred = [name for name, module in sys.modules.items() if type(module).__name__ == "Deferred"]
print(
    json.dumps(
        {
            "code": code,
            "imported": [name for name in imported if name not in deferred],
            "frozen": gc.get_freeze_count(),
            "collecting": gc.isenabled(),
            **said,
        }
    )
)
