"""What a format loses: measured on rows of a matrix, counted by what a text shows of its inputs and its layer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import penstock
from penstock.kernels.formats.registry import FORMATS
from penstock.runtime.checkpoints.built_model import BuiltWeights
from penstock.runtime.checkpoints.describe import describe
from penstock.runtime.evaluation.calibrate import calibrate
from penstock.runtime.packing.arrange.formats import AS_IS, Choice, Rules, choose_formats
from penstock.runtime.packing.arrange.shares import assumed_shares
from penstock.runtime.packing.arrange.size_target import WAYS
from penstock.runtime.packing.measure.calibration import Calibration
from penstock.runtime.packing.measure.errors import MOST_ROWS, relative_errors
from penstock.runtime.routing.profiling import profile
from penstock.tiering.errors import CheckpointError
from penstock.tiering.units import BlockId
from tests.support.tiny_models import save_tiny

PATH = "model.layers.1.mlp.experts"
WINDOWS = torch.randint(3, 300, (3, 40), generator=torch.Generator().manual_seed(2)).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("qwen3_moe", tmp_path_factory.mktemp("moe"), torch.bfloat16, hidden_size=128)


@pytest.fixture(scope="module")
def own(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", experts_implementation="eager"
    )
    return model.eval()


@pytest.fixture(scope="module")
def calibration(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Calibration]:
    with penstock.load(
        folder, store=tmp_path_factory.mktemp("store"), host_memory="2MB", attn_implementation="eager"
    ) as model:
        yield calibrate(model, WINDOWS)


def losses(model: PreTrainedModel, way: Choice, importance: dict[Any, torch.Tensor], id_: BlockId) -> float:
    plan = describe(model)
    (block,) = [block for block in plan.blocks if block.id == id_]
    chosen = choose_formats(model, plan, Rules("int8"))
    (loss,) = relative_errors(block, chosen, [way], BuiltWeights(model), importance, rows=MOST_ROWS)
    return loss


@pytest.mark.parametrize("way", [*WAYS["expert"], *WAYS["dense"]])
def test_the_error_is_that_of_the_stored_matrix(way: Choice, own: PreTrainedModel) -> None:
    """The tiny matrices have no more rows than are looked at."""
    id_ = BlockId("dense", "model.layers.0.self_attn.k_proj")
    matrix = own.get_submodule(id_.module).weight.data
    n, k = matrix.shape
    format_, found = FORMATS[way.format], torch.empty_like(matrix)
    format_.decode(format_.encode([matrix], n, k)[: way.planes], n, k, slice(0, n), found)
    wanted = ((found - matrix).float().square().sum() / matrix.float().square().sum()).item()
    assert losses(own, way, {}, id_) == pytest.approx(wanted, rel=1e-4)
    assert 0 < wanted < 0.2


def test_columns_count_by_their_importance(own: PreTrainedModel) -> None:
    id_ = BlockId("expert", PATH, 3)
    way = Choice("int4-32")
    first = torch.full((128,), 1e-3)
    first[:32] = 1.0
    alike = losses(own, way, {}, id_)
    assert losses(own, way, {(f"{PATH}.gate_up_proj", 2): first}, id_) == alike, "another expert's"
    assert losses(own, way, {(f"{PATH}.gate_up_proj", 3): first}, id_) != alike


def test_what_a_format_cannot_have_is_named(own: PreTrainedModel) -> None:
    weight = own.get_submodule("model.layers.0.self_attn.k_proj").weight.data
    kept = weight.clone()
    weight[3, 5] = torch.inf
    try:
        with pytest.raises(CheckpointError, match=r"k_proj\.weight .*infinities.*as-is"):
            losses(own, Choice("int8"), {}, BlockId("dense", "model.layers.0.self_attn.k_proj"))
    finally:
        weight.copy_(kept)


def test_a_shape_that_stays_as_it_is_loses_nothing(own: PreTrainedModel) -> None:
    """A matrix of so few rows takes more in int4 than as it is."""
    plan = describe(own)
    block = next(block for block in plan.blocks if block.id == BlockId("dense", "model.layers.0.self_attn.k_proj"))
    (spec,) = block.tensors
    small = block.__class__(block.id, block.extent, "", (spec.__class__(spec.name, "bfloat16", (1, 128), 0, 256),))
    chosen = {spec.name: Choice("int8")}
    assert relative_errors(small, chosen, [Choice("int4-32")], BuiltWeights(own), {}, rows=64) == [0.0]


def test_a_text_shows_the_inputs_of_matrices(own: PreTrainedModel, calibration: Calibration) -> None:
    """Against hooks on transformers' own model, and its experts computed by hand."""
    path = "model.layers.1.self_attn.o_proj"
    inputs: list[torch.Tensor] = []
    routed: list[tuple[torch.Tensor, ...]] = []
    hooks = [
        own.get_submodule(path).register_forward_pre_hook(lambda _, args: inputs.append(args[0].flatten(0, -2))),
        own.get_submodule(PATH).register_forward_pre_hook(lambda _, args: routed.append(args)),
    ]
    with torch.no_grad():
        for window in WINDOWS:
            own(torch.tensor([window]))
    for hook in hooks:
        hook.remove()
    wanted = torch.cat(inputs).float().square().mean(0)
    found = calibration.importance[f"{path}.weight"]
    count = sum(map(len, WINDOWS))
    assert torch.allclose(found, (count * wanted + 16 * wanted.mean()) / (count + 16), rtol=1e-3)

    experts: Any = own.get_submodule(PATH)
    for expert in range(experts.num_experts):
        states = torch.cat([hidden[(index == expert).any(1)] for hidden, index, _ in routed])
        if not len(states):
            assert (f"{PATH}.down_proj", expert) not in calibration.importance
            continue
        squares = experts._apply_gate(states @ experts.gate_up_proj[expert].T).float().square()
        usual = squares.mean()
        wanted = (squares.sum(0) + 16 * usual) / (len(states) + 16)
        assert torch.allclose(calibration.importance[f"{PATH}.down_proj", expert], wanted, rtol=2e-2)


def test_experts_share_what_their_layer_adds(own: PreTrainedModel, calibration: Calibration) -> None:
    outputs: dict[str, list[torch.Tensor]] = {"mlp": [], "layer": []}
    layer = own.get_submodule("model.layers.1")
    hooks = [
        layer.mlp.register_forward_hook(lambda *args: outputs["mlp"].append(args[2])),
        layer.register_forward_hook(lambda *args: outputs["layer"].append(args[2])),
    ]
    with torch.no_grad():
        for window in WINDOWS:
            own(torch.tensor([window]))
    for hook in hooks:
        hook.remove()
    added, whole = (torch.cat(each, dim=1)[0].float().square().sum(-1) for each in outputs.values())
    shares = [calibration.shares[BlockId("expert", PATH, expert)] for expert in range(8)]
    assert sum(shares) == pytest.approx((added / whole).mean().item(), rel=1e-2)
    assert max(shares) > 1.5 * min(shares) > 0


def test_without_a_text_experts_are_alike_or_as_a_trace_says(own: PreTrainedModel, folder: Path) -> None:
    plan = describe(own)
    alike = assumed_shares(own, plan, None)
    first, last = (alike[BlockId("dense", f"model.layers.{layer}.self_attn.q_proj")] for layer in (0, 1))
    assert first > last
    experts = [alike[BlockId("expert", PATH, expert)] for expert in range(8)]
    assert experts == [pytest.approx(last / 8)] * 8
    routes = profile(own, [token for window in WINDOWS for token in window], window=40)
    seen = assumed_shares(own, plan, routes)
    uses = torch.from_numpy(routes.layers[1].used().sum(0))
    by_use = [seen[BlockId("expert", PATH, expert)] for expert in range(8)]
    assert sum(by_use) == pytest.approx(last)
    assert sorted(range(8), key=by_use.__getitem__) == uses.argsort(stable=True).tolist()


def test_an_output_layer_that_embeds_too_counts_for_both(tmp_path: Path) -> None:
    tied = AutoModelForCausalLM.from_pretrained(save_tiny("qwen3", tmp_path / "tied"))
    shares = assumed_shares(tied, describe(tied), None)
    assert shares[BlockId("dense", "model.embed_tokens")] == 2
    apart = AutoModelForCausalLM.from_pretrained(save_tiny("llama", tmp_path / "apart"))
    assert assumed_shares(apart, describe(apart), None)[BlockId("dense", "lm_head")] == 1


def test_ways_are_formats_that_there_are() -> None:
    assert all(way.format in FORMATS and way.format != AS_IS for ways in WAYS.values() for way in ways)
