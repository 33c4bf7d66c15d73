"""The list of models."""

import openai
import pytest


def test_the_model_is_listed(client: openai.OpenAI):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_a_model_that_is_not_there_is_named(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError, match="no model 'other' here; there are: tiny"):
        client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.completions.create(model="other", prompt="x")
