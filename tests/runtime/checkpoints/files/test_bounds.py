"""A configuration asks for no more than the files beside it hold."""

import pytest

from penstock.runtime.checkpoints.files.bounds import WITHOUT_FILES, Bounds, absurd, most_tensors

SMALL = Bounds.of_tensors([((64, 64), 16384)] * 20)


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": 20_000},
        {"n_layer": 20_000},
        {"num_layers": 1e9},
        {"text_config": {"num_hidden_layers": 20_000}},
        {"vision_config": {"depth": 10**30}},
        {"num_experts": 10**9},
        {"num_local_experts": 10**9},
        {"n_routed_experts": 10**9},
        {"num_labels": 10**9},
        {"first_k_dense_replace": 10**9},
    ],
)
def test_absurd_numbers_are_named(config: dict[str, object]) -> None:
    key = str(next(iter(config)))
    for bounds in (SMALL, WITHOUT_FILES):
        said = absurd(config, bounds)
        assert said is not None
        assert key in said or key.endswith("_config")


def test_other_numbers_are_free() -> None:
    config = {
        "num_hidden_layers": 61, "n_routed_experts": 256, "num_experts_per_tok": 8, "max_window_layers": 28,
        "vocab_size": 10**12, "rope_theta": 1e9, "bos_token_id": 10**9, "global_attn_every_n_layers": 10**9,
        "use_layers": True, "layers": None, "layer_types": ["x"] * 61,
    }  # fmt: skip
    assert absurd(config, SMALL) is None


def test_large_files_justify_much() -> None:
    large = Bounds.of_tensors([((384, 2048, 7168), 384 * 2048 * 7168)] * 180)
    assert large.experts > 61 * 384
    assert large.parts > 61 * 384 * 8
    assert absurd({"num_hidden_layers": 1024, "num_experts": 384}, large) is None


def test_stacks_of_nothing_justify_nothing() -> None:
    assert Bounds.of_tensors([((1 << 40, 0, 1), 0)]).parts < 11_000


def test_tensors_of_a_model_are_bounded_by_its_weights() -> None:
    assert most_tensors([(64, 64)] * 20) < 11_000
    assert most_tensors([(384, 2048, 7168)] * 120) > 384 * 120 * 6
