"""Files beside the weights that change where they came from."""

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from ..fields import pick
from ..side import Side
from .step import Step


@dataclass(frozen=True)
class EditFiles(Step):
    """A small file of the checkpoint changes, and the model is opened again."""

    likelihood: ClassVar[int] = 5

    what: str = pick("generation", "config", "template", "code")

    def run(self, side: Side) -> Any:
        folder = side.written.checkpoint if side.ours else side.written.plain
        if self.what == "generation":
            _edit(folder / "generation_config.json", eos_token_id=[2, 40], temperature=0.6)
        elif self.what == "config":
            _edit(folder / "config.json", eos_token_id=7, use_cache=True)
        elif self.what == "template":
            (folder / "chat_template.jinja").write_text("new")
        elif (folder / "helper_own.py").is_file():
            (folder / "helper_own.py").write_text("FACTOR = 3.0\n")
        side.open()
        config = side.base.generation_config
        return [config.eos_token_id, config.temperature, side.base.config.eos_token_id]


def _edit(path: Any, **changes: Any) -> None:
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(found | changes))
