"""The ``llm`` command line as a client, with its own file of models that speak OpenAI's language."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from llm.cli import cli

from tests.support.servers import Served


@pytest.fixture
def home(tmp_path: Path, server: Served) -> Path:
    models = [
        {"model_id": "mine", "model_name": "tiny", "api_base": f"{server.url}/v1", "supports_schema": True},
        {"model_id": "other", "model_name": "missing", "api_base": f"{server.url}/v1"},
    ]
    (tmp_path / "extra-openai-models.yaml").write_text(yaml.safe_dump(models))
    (tmp_path / "logs-off").touch()
    return tmp_path


@pytest.fixture
def llm(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run ``llm``; exit code, stdout, stderr."""
    monkeypatch.setenv("LLM_USER_PATH", str(home))
    monkeypatch.setenv("LLM_LOAD_PLUGINS", "")
    monkeypatch.setenv("OPENAI_API_KEY", "-")

    def llm(*arguments: str) -> tuple[int, str, str]:
        done = CliRunner().invoke(cli, ["prompt", *arguments])
        return done.exit_code, done.stdout, done.stderr

    return llm


def test_it_streams_an_answer_and_gets_the_same_at_once(llm, server: Served):
    options = ["-m", "mine", "-o", "temperature", "0", "-o", "max_tokens", "8", "-s", "Be brief.", "Hello"]
    told = server.engine.tokens
    code, streamed, err = llm(*options)
    assert (code, err) == (0, "")
    assert server.engine.tokens - told == 8
    assert llm(*options, "--no-stream") == (0, streamed, "")


def test_it_asks_for_json_that_keeps_to_a_schema(llm):
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    code, out, err = llm("-m", "mine", "--schema", json.dumps(schema), "-o", "seed", "1", "Is it?")
    assert code == 0, err
    assert json.loads(out)["ok"] in (True, False)


def test_it_says_what_the_server_says(llm):
    code, _, err = llm("-m", "other", "Hello")
    assert code == 1
    assert "there is no model 'missing' here; there are: tiny" in err
