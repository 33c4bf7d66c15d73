"""Processes that pack, load, verify and delete one bundle at the same time.

``python -m tests.hostile.races ROUNDS [SEED]`` plays rounds and counts outcomes.
"""

import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from transformers.utils import logging

import penstock
from penstock.runtime.config.config import Config
from penstock.runtime.loading.opening import ModelSource, find_bundle
from penstock.runtime.packing.pack import pack
from penstock.tiering.errors import PenstockError
from penstock.tiering.store.bundle.reader import Bundle
from tests.support.logits import logits
from tests.support.tiny_models import save_tiny

ACTIONS = ("pack", "pack", "load", "verify", "delete")
"""What the processes of a round do."""
_LATEST = 0.15
"""Seconds after which the last of them begins."""


class Race:
    """Rounds on one checkpoint, in ``folder``. Each round has a store of its own."""

    def __init__(self, folder: Path, *, stripes: bool = False) -> None:
        self.folder, self.stripes = folder, [folder / "stripe"] if stripes else []
        self.checkpoint = save_tiny("qwen3_moe", folder / "checkpoint")
        with penstock.load(self.checkpoint, store=folder / "first", host_memory="8MiB") as model:
            self.expected = logits(model)
        shutil.copytree(folder / "first", folder / "store")

    def round(self, seed: int) -> dict[str, str]:
        """Play one round. Returns the outcome of each process: "right", the error's text, or a traceback."""
        chance = random.Random(seed)
        store = self.folder / "store"
        if chance.random() < 0.5:
            shutil.rmtree(store, ignore_errors=True)
        delays = [chance.random() * _LATEST for _ in ACTIONS]
        reports = [self.folder / f"outcome-{number}" for number in range(len(ACTIONS))]
        children = []
        for action, delay, report in zip(ACTIONS, delays, reports, strict=True):
            report.unlink(missing_ok=True)
            child = os.fork()
            if not child:
                self._be_child(action, delay, report, chance.random())
            children.append(child)
        for child, report in zip(children, reports, strict=True):
            _, status = os.waitpid(child, 0)
            if status:
                report.write_text(json.dumps(f"died with status {status}"))
        return {f"{number} {ACTIONS[number]}": json.loads(report.read_text()) for number, report in enumerate(reports)}

    def _be_child(self, action: str, delay: float, report: Path, luck: float) -> None:
        code = 1
        try:
            time.sleep(delay)
            report.write_text(json.dumps(_outcome(lambda: getattr(self, f"_{action}")(luck))))
            code = 0
        finally:
            os._exit(code)

    def _pack(self, _: float) -> bool:
        pack(self.checkpoint, store=self.folder / "store", stripes=self.stripes).close()
        return True

    def _load(self, _: float) -> bool:
        options = {"store_stripes": self.stripes} if self.stripes else {}
        with penstock.load(self.checkpoint, store=self.folder / "store", host_memory="8MiB", **options) as model:
            return all(torch.equal(a, b) for a, b in zip(logits(model), self.expected, strict=True))

    def _verify(self, _: float) -> bool:
        config = Config.load(None, store=self.folder / "store", host_memory="8MiB")
        with Bundle.open(find_bundle(ModelSource(model=str(self.checkpoint)), config)) as bundle:
            return bundle.verify() == []

    def _delete(self, luck: float) -> bool:
        for path in sorted((self.folder / "store").glob("*")):
            if path.is_dir() and not path.name.endswith(".partial"):
                for entry in sorted(path.iterdir(), reverse=luck < 0.5):  # data files first, or the manifest
                    if luck % 0.1 < 0.01:
                        break  # the deletion is interrupted
                    if entry.is_dir():
                        shutil.rmtree(entry, ignore_errors=True)
                    else:
                        entry.unlink(missing_ok=True)
                else:
                    shutil.rmtree(path, ignore_errors=True)
        return True


def _outcome(act: Callable[[], bool]) -> str:
    try:
        return "right" if act() else "wrong"
    except PenstockError as error:
        return f"{type(error).__name__}: {error}"
    except BaseException:
        return traceback.format_exc()


def is_fine(outcome: str) -> bool:
    """Whether ``outcome`` is right or one clear line."""
    return outcome == "right" or (outcome != "wrong" and "\n" not in outcome and not outcome.startswith("died"))


def main() -> None:
    rounds, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        race = Race(Path(folder))
        for seed in range(first, first + rounds):
            for who, outcome in race.round(seed).items():
                kind = outcome.replace(folder, "") if is_fine(outcome) else "BAD"
                counts[f"{who[2:]}: {kind}"] += 1
                if kind == "BAD":
                    print(f"round {seed}, {who}: {outcome}", flush=True)
    for line, count in sorted(counts.items()):
        print(f"{count:6} {line}")


if __name__ == "__main__":
    main()
