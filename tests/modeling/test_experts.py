"""Grouped experts equal every token sent through each of its experts by hand; the router follows its rule."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tide_cache.modeling.experts import grouped_experts, route, uses_grouped_gemm

NUM_EXPERTS, SIZE, INNER = 8, 16, 24


def drawn(seed, num_tokens, experts_per_token, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    expert_NK = torch.rand(num_tokens, NUM_EXPERTS, generator=generator).argsort(dim=1)[:, :experts_per_token]
    weight_NK = torch.rand(num_tokens, experts_per_token, generator=generator)
    return (
        normal(num_tokens, SIZE),
        expert_NK,
        weight_NK,
        normal(NUM_EXPERTS, 2 * INNER, SIZE),
        normal(NUM_EXPERTS, SIZE, INNER),
    )


def one_by_one(x_ND, expert_NK, weight_NK, gate_up_EJD, down_EDI):
    result_ND = torch.zeros_like(x_ND)
    for n, x_D in enumerate(x_ND):
        for expert, weight in zip(expert_NK[n], weight_NK[n], strict=True):
            gate_I, up_I = gate_up_EJD[expert, :INNER] @ x_D, gate_up_EJD[expert, INNER:] @ x_D
            result_ND[n] += weight * (down_EDI[expert] @ (gate_I.sigmoid() * gate_I * up_I))
    return result_ND


ONE_GEMM = pytest.param(True, marks=pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no kernel"))


@pytest.mark.parametrize("in_one_gemm", [False, ONE_GEMM])
@given(seed=st.integers(0, 2**32), num_tokens=st.integers(1, 12), experts_per_token=st.integers(1, NUM_EXPERTS))
def test_grouped_experts_equal_each_token_through_each_expert(in_one_gemm, seed, num_tokens, experts_per_token):
    arguments = drawn(seed, num_tokens, experts_per_token)
    grouped_ND = grouped_experts(*arguments, in_one_gemm=in_one_gemm)
    torch.testing.assert_close(grouped_ND, one_by_one(*arguments), atol=1e-3, rtol=1e-4)


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no kernel")
def test_both_groupings_agree_in_bfloat16():
    arguments = drawn(5, 40, 3, torch.bfloat16)
    one, other = (grouped_experts(*arguments, in_one_gemm=choice) for choice in (False, True))
    assert one.dtype == torch.bfloat16
    torch.testing.assert_close(one, other, atol=0.5, rtol=0.02)


def test_a_token_does_not_depend_on_those_beside_it():
    x_ND, expert_NK, weight_NK, *weights = drawn(1, 30, 2)
    together_ND = grouped_experts(x_ND, expert_NK, weight_NK, *weights, in_one_gemm=False)
    for n in range(30):
        alone = grouped_experts(
            x_ND[n : n + 1], expert_NK[n : n + 1], weight_NK[n : n + 1], *weights, in_one_gemm=False
        )
        torch.testing.assert_close(alone[0], together_ND[n], atol=1e-4, rtol=1e-5)


def test_this_machine_uses_the_kernel_only_where_it_has_one():
    assert not uses_grouped_gemm(torch.zeros(1, 8, dtype=torch.bfloat16), torch.zeros(2, 8, 8, dtype=torch.bfloat16))


@given(seed=st.integers(0, 2**32), groups_per_token=st.integers(1, 4), scaling=st.floats(0.5, 3))
def test_the_router_follows_its_rule(seed, groups_per_token, scaling):
    generator = torch.Generator().manual_seed(seed)
    x_ND, gate_ED = torch.randn(5, SIZE, generator=generator), torch.randn(NUM_EXPERTS, SIZE, generator=generator)
    bias_E = torch.randn(NUM_EXPERTS, generator=generator)
    expert_NK, weight_NK = route(
        x_ND, gate_ED, bias_E, num_groups=4, groups_per_token=groups_per_token, experts_per_token=2, scaling=scaling
    )
    for n in range(5):
        score = (F.linear(x_ND[n], gate_ED)).sigmoid().tolist()
        biased = [s + b for s, b in zip(score, bias_E.tolist(), strict=True)]
        best_groups = sorted(range(4), key=lambda g: -(biased[2 * g] + biased[2 * g + 1]))[:groups_per_token]
        open_experts = [e for g in best_groups for e in (2 * g, 2 * g + 1)]
        expected = sorted(open_experts, key=lambda e: -biased[e])[:2]
        assert expert_NK[n].tolist() == expected
        total = sum(score[e] for e in expected)
        assert weight_NK[n].tolist() == pytest.approx([scaling * score[e] / total for e in expected], rel=1e-5)


def test_a_single_expert_keeps_its_score():
    x_ND, gate_ED = torch.ones(1, 4), torch.eye(4)
    expert_NK, weight_NK = route(
        x_ND, gate_ED, torch.zeros(4), num_groups=2, groups_per_token=1, experts_per_token=1, scaling=2.0
    )
    assert weight_NK.item() == pytest.approx(2 * torch.tensor(1.0).sigmoid().item())
    assert expert_NK.shape == (1, 1)
