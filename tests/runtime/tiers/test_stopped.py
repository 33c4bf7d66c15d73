"""A process that is stopped in the middle of its tokens, as by a laptop's lid, goes on as if nothing had happened."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.support.logits import IDS, least_budget

TOKENS, STOPS = 24, (1, 5, 9, 13)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes cannot be stopped here")
def test_a_stopped_process_goes_on_with_the_same_tokens(tiny_moe_folder: Path, store: Path) -> None:
    options = {"max_new_tokens": TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    reference = AutoModelForCausalLM.from_pretrained(tiny_moe_folder, experts_implementation="eager").eval()
    expected = reference.generate(IDS[:1], **options)[0, IDS.shape[1] :].tolist()
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.token_printer", tiny_moe_folder, store]
    command += [least_budget(tiny_moe_folder, store), TOKENS]
    found = []
    with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            found.append(int(line))
            if len(found) in STOPS:
                child.send_signal(signal.SIGSTOP)
                state = os.waitid(os.P_PID, child.pid, os.WSTOPPED)
                assert state is not None
                assert state.si_status == signal.SIGSTOP
                child.send_signal(signal.SIGCONT)
        assert child.wait() == 0
    assert found == expected
