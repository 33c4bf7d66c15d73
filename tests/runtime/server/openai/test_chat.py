"""Chat completions, asked for by OpenAI's own client."""

import openai

from tests.support.servers import Served

CHAT = [{"role": "user", "content": "Is this é a tested text?"}]


def alone(server: Served, tokens: int) -> str:
    ids = server.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    model = server.served.model
    out = model.generate(ids, max_new_tokens=tokens, do_sample=False)
    return server.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_an_answer_is_that_of_generate(server: Served, client: openai.OpenAI):
    found = client.chat.completions.create(model="tiny", messages=CHAT, temperature=0, max_tokens=24)
    assert found.choices[0].message.content == alone(server, 24)
    print(found)
