"""FlexAttention under a student: the same losses and gradients as sdpa, and a clear word where it cannot run.

On CPUs PyTorch refuses its backward pass, though the one written in plain operations is there and is what the kernels
are held to: the tests lift that refusal, and compile nothing.
"""

import pytest
import torch
from torch.nn.attention import flex_attention as flex_module
from torch.nn.attention.flex_attention import create_block_mask
from transformers import Qwen3Config

from helpers.pair_examples import one_to_one
from tide_cache.config.sections import ViewsConfig
from tide_cache.errors import ModelError
from tide_cache.loading.collate import BatchLayout, collate_rows
from tide_cache.loading.source import PlainSource
from tide_cache.modeling import attention
from tide_cache.modeling.attention import Copies, block_diffusion_mask, prepare_mask, try_flex, with_padding
from tide_cache.modeling.backbone import new_backbone
from tide_cache.objectives import ids_to_gather
from tide_cache.student.model import Student
from tide_cache.training.kernels import _choose_attention
from tide_cache.training.run import _checkpoint_activations

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
PLAN = BatchLayout(mask_id=14, pad_id=15, block_size=4)
VIEWS = ViewsConfig(num_views=2, seed=1, time_sampling="uniform", schedule="linear", complementary=False)
LENGTHS = (70, 33, 9)


@pytest.fixture
def eager_flex(monkeypatch):
    monkeypatch.setattr(flex_module, "_validate_device", lambda *_: None)
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture
def backbone():
    config = Qwen3Config(
        vocab_size=16, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, tie_word_embeddings=True, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return new_backbone(config, torch.float32, "cpu", seed=0)


def batches():
    source = PlainSource([one_to_one(str(n), n) for n in LENGTHS], VIEWS)
    first, second, third = zip(*(source.records(range(len(LENGTHS)), view) for view in range(2)), strict=True)
    return {
        "padded": [[first[:1]], [second[:1]], [third[:1]]],
        "several views": [[first], [second]],
        "packed rows": [[first[:1], third[:1]], [second[:1]]],
        "packed rows of several views": [[first, third], [second]],
    }


@pytest.mark.parametrize("case", ["padded", "several views", "packed rows", "packed rows of several views"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_losses_and_gradients_are_those_of_sdpa(backbone, eager_flex, case, checkpointing):
    batch, targets = collate_rows(batches()[case], PLAN)
    if checkpointing:
        _checkpoint_activations(backbone.model)
    student = Student(backbone, PLAN.block_size, slice_rows=64).train()
    found = {}
    for kind in ("sdpa", "flex"):
        backbone.use_attention(kind)
        student.zero_grad()
        gathered_NK, log_z_NT, _ = student(batch, *ids_to_gather(targets), (1.0,))
        loss = (log_z_NT[:, 0] - gathered_NK[:, 0]).sum()
        loss.backward()
        found[kind] = loss.detach(), torch.cat([weight.grad.ravel() for weight in student.parameters()])
    assert len(targets.true_id_N) > 20
    torch.testing.assert_close(found["flex"][0], found["sdpa"][0], rtol=1e-5, atol=0)
    torch.testing.assert_close(found["flex"][1], found["sdpa"][1], rtol=1e-4, atol=1e-5)
    assert found["sdpa"][1].abs().max() > 1e-2


@pytest.mark.parametrize(("length", "block_size", "num_views"), [(200, 32, 1), (96, 32, 3), (128, 64, 1), (5, 4, 1)])
def test_the_blocks_that_are_computed_are_those_of_the_whole_mask(length, block_size, num_views):
    is_real_BL = torch.ones(2, length, dtype=torch.bool)
    is_real_BL[1, : length // 2] = False
    mask_B1SS = with_padding(block_diffusion_mask(length, block_size), is_real_BL.repeat(1, 2))
    whole_B1SS = with_padding(block_diffusion_mask(length, block_size, num_views), is_real_BL.repeat(1, num_views + 1))
    found = prepare_mask(mask_B1SS, "flex", Copies(num_views, length))
    size = (num_views + 1) * length
    own = create_block_mask(lambda b, h, q, s: whole_B1SS[b, 0, q, s], 2, None, size, size, device="cpu")
    assert torch.equal(found.to_dense(), own.to_dense())


def test_on_a_cpu_auto_trains_with_sdpa_and_says_so(backbone):
    (remark,) = _choose_attention("auto", backbone, "cpu")
    assert "sdpa is used, not flex: found the device 'cpu', where FlexAttention has no backward pass" in remark
    assert backbone.model.config._attn_implementation == "tide_cache"
    assert _choose_attention("sdpa", backbone, "cpu") == []


def test_the_trial_passes_where_both_agree(eager_flex):
    assert try_flex(torch.device("cpu")) is None


def test_the_trial_tells_what_the_machine_says():
    assert try_flex(torch.device("cpu")).startswith("it does not run here: FlexAttention does not support backward")


def test_the_trial_finds_a_kernel_that_is_wrong(eager_flex, monkeypatch):
    right = attention.flex_attention
    monkeypatch.setattr(attention, "flex_attention", lambda *args, **kwargs: 1.1 * right(*args, **kwargs))
    assert try_flex(torch.device("cpu")).startswith("it differs from sdpa by 0.")


class TestOnAGpu:
    """What the choice does with the answer of the trial; the trial itself needs a GPU."""

    def test_flex_is_used_where_it_runs(self, backbone, monkeypatch):
        monkeypatch.setattr("tide_cache.training.kernels.flex_problem", lambda _: None)
        assert _choose_attention("auto", backbone, "cuda:0") == []
        assert backbone.model.config._attn_implementation == "flex_attention"

    def test_asked_for_by_name_it_is_not_replaced(self, backbone, monkeypatch):
        monkeypatch.setattr("tide_cache.training.kernels.flex_problem", lambda _: "it does not run here: no compiler")
        with pytest.raises(
            ModelError, match=r"student.attention = 'flex': it does not run here: no compiler; use sdpa"
        ):
            _choose_attention("flex", backbone, "cuda:0")
