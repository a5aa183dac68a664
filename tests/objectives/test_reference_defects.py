"""The recorded edge cases: equal to the reference where it is right, and the right value where it is not.

Right values are computed here in float64 from the recorded logits, without any of the code under test.
"""

import json

import numpy as np
import pytest
import torch

from tide_cache.objectives.calm import Calm, ReverseCalm
from tide_cache.objectives.ce import CrossEntropy
from tide_cache.objectives.kl import ForwardKL, ReverseKL
from tide_cache.objectives.tidal import Tidal
from tide_cache.pairing.collecting import Limits
from tide_cache.records import SampleId, SamplePair
from tide_cache.views.masking import expand_to_chunks

CE = CrossEntropy("scheduler")
T = 2.0
TERMS = {
    "alm": [Calm(T, clamp_student=True)],
    "reverse_alm": [ReverseCalm(T, clamp_student=True)],
    "alm_taid": [Tidal("calm", T, normalise="count", clamp_student=True)],
    "kl": [ForwardKL(T)],
    "reverse_kl": [ReverseKL(T)],
    "taid": [Tidal("kl", T, normalise="count")],
    "taid+kl": [Tidal("kl", T, normalise="count"), ForwardKL(T)],
}
"""What each mode adds to the cross-entropy; the edge cases weigh all terms with 1 and draw no midrange weight."""

NOTHING_MASKED = [f"nomask-{mode}" for mode in TERMS]
NOTHING_MASKED += [f"nomask-{mode}-compdemo" for mode in ("alm", "reverse_alm", "alm_taid")]
AS_RECORDED = {
    **{name: TERMS[name.removeprefix("nomask-").removesuffix("-compdemo")] for name in NOTHING_MASKED},
    "norm-token-scheduler": TERMS["alm"],
    "demo_ratio-0.0": TERMS["alm"],
    "demo_ratio-1.0": TERMS["alm"],
    "aligned_sample0_empty": TERMS["taid"],
    "aligned_all_empty-kl_aligned": TERMS["kl"],
    "aligned_all_empty-taid_aligned": TERMS["taid"],
}
"""Cases in which ours equals the reference in loss and gradient."""

OTHERWISE = {
    "norm-token-uniform", "teacher_truncated", "aligned_pos0", "aligned_index_clamped", "static_alm_bf16",
    "static_alm_reverse_bf16",
}  # fmt: skip
"""Cases with a test of their own."""

NOT_EXPRESSED = {
    "norm-sequence-scheduler": "a mean of sample means; every objective here is a sum over one count of the step",
    "norm-sequence-uniform": "the same",
    "norm-batch-scheduler": "a sum over the number of samples, which grows with their length",
    "norm-batch-uniform": "the same",
    "static_alm_weights": "weights per chunk, which no mode of the reference's trainer ever passes",
    "static_alm_reverse_weights": "the same",
    "static_taid_entropy": "weights per position by teacher entropy, which no mode of its trainer ever passes",
}


def test_every_edge_case_is_held_or_named_with_its_reason(golden_arrays):
    names = {case["name"] for case in json.loads(str(golden_arrays("edge")["meta_json"]))["cases"]}
    assert set(AS_RECORDED) | OTHERWISE | set(NOT_EXPRESSED) == names
    assert len(AS_RECORDED) + len(OTHERWISE) + len(NOT_EXPRESSED) == len(names), "each in one place only"


def mean_with_ce(case, objectives):
    return case.mean(CE) + sum(case.mean(objective) for objective in objectives)


def gradient_of(loss, case):
    return torch.autograd.grad(loss, case.student_logits_BLV)[0]


def assert_gradient_is_recorded(gradient_BLV, recorded):
    recorded = torch.from_numpy(recorded)
    torch.testing.assert_close(gradient_BLV, recorded, rtol=0, atol=2e-5 * float(recorded.abs().max()))


@pytest.mark.parametrize("name", AS_RECORDED)
def test_edge_cases_equal_the_reference(edge_case, name):
    case = edge_case(name)
    loss = mean_with_ce(case, AS_RECORDED[name])
    assert loss.item() == pytest.approx(float(case.recorded["loss_total"]), rel=1e-5)
    assert_gradient_is_recorded(gradient_of(loss, case), case.recorded["grad_total"])


def test_the_edge_cases_are_what_their_names_say(edge_case):
    assert all(len(edge_case(name).targets.true_id_N) == 0 for name in NOTHING_MASKED)
    first, last = (edge_case(f"demo_ratio-{ratio}").targets.truth.chunk_logprob_C for ratio in ("0.0", "1.0"))
    assert len(first) > 10
    assert not torch.isclose(first, last).any(), "one pass says everything, the other nothing"
    assert edge_case("aligned_sample0_empty").targets.topk.has_topk_N.sum() == 15
    assert edge_case("aligned_all_empty-kl_aligned").targets.topk.has_topk_N.sum() == 0


def test_uniform_divides_by_the_masked_tokens_and_the_reference_by_all(edge_case):
    """A mean over what is predicted: with the reference's divisor the weight falls as less is masked by chance."""
    case, uniform = edge_case("norm-token-uniform"), CrossEntropy("uniform")
    over_all = case.mean(uniform) * uniform.count(case.targets) / case.targets.num_supervised
    assert over_all.item() == pytest.approx(float(case.recorded["ce_loss"]), rel=1e-5)
    loss = over_all + case.mean(Calm(T, clamp_student=True))
    assert loss.item() == pytest.approx(float(case.recorded["loss_total"]), rel=1e-5)
    assert_gradient_is_recorded(gradient_of(loss, case), case.recorded["grad_total"])
    right = -true_logprobs(case.shared, "student")[case.shared["student_mask"]].mean()
    assert case.mean(uniform).item() == pytest.approx(right, rel=1e-5)
    assert right > 1.1 * float(case.recorded["ce_loss"])


def log_softmax(logits, temperature=1.0):
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=-1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(axis=-1, keepdims=True))


def true_logprobs(inputs, side):
    """Log-prob of the true token at every position [B, L]."""
    logits_BLV = inputs[f"{side}_logits"]
    ids_BL1 = inputs[f"{side}_input_ids"][:, : logits_BLV.shape[1], None]
    return np.take_along_axis(log_softmax(logits_BLV), ids_BL1, axis=2)[..., 0]


def calm_by_formula(inputs, is_counted_BC, reverse=False):
    """Mean binary cross-entropy over the chosen chunks."""
    student_BL, teacher_BM = true_logprobs(inputs, "student"), true_logprobs(inputs, "teacher")
    terms = []
    for b, c in np.argwhere(is_counted_BC):
        t0, t1, s0, s1 = inputs["chunks"][b, c]
        s, p = (
            np.clip(np.exp(x / T), 1e-7, 1 - 2.0**-23) for x in (student_BL[b, s0:s1].sum(), teacher_BM[b, t0:t1].sum())
        )
        target, prediction = (s, p) if reverse else (p, s)
        terms.append(-(target * np.log(prediction) + (1 - target) * np.log1p(-prediction)))
    return np.mean(terms)


def kl_by_formula(inputs, is_counted_BP):
    """T^2 times the mean KL(teacher || student) over the chosen pairs of positions, on the shared ids."""
    size = 47
    terms = []
    for b, pair in np.argwhere(is_counted_BP):
        p_V = log_softmax(inputs["teacher_logits"][b, inputs["align_teacher"][b, pair], :size], T)
        q_V = log_softmax(inputs["student_logits"][b, inputs["align_student"][b, pair], :size], T)
        terms.append((np.exp(p_V) * (p_V - q_V)).sum())
    return T**2 * np.mean(terms)


def test_chunks_cut_off_the_teacher_carry_no_loss(edge_case, golden_arrays):
    """The reference keeps a chunk whose teacher tokens were cut away.

    A sum over none of them gives log-prob 0, so the teacher seems sure of a chunk that it never saw; a chunk cut in the
    middle is judged by its first tokens. Right: a chunk counts only if it lies wholly inside both lengths.
    """
    inputs, recorded = golden_arrays("alm_seed0"), edge_case_arrays(golden_arrays, "teacher_truncated")
    length = recorded["teacher_mask"].shape[1]
    cut = Limits(length, inputs["student_logits"].shape[1], 1, 0).cut
    pairs = [cut(pair) for pair in whole_pairs(inputs)]
    case = edge_case(
        "teacher_truncated",
        teacher_logits=inputs["teacher_logits"][:, :length],
        teacher_input_ids=inputs["teacher_input_ids"][:, :length],
        teacher_mask=np.stack(
            [expand_to_chunks(p, m)[1] for p, m in zip(pairs, recorded["student_mask"], strict=True)]
        ),
        chunks=padded([pair.chunks_C4 for pair in pairs]),
        n_chunks=np.array([len(pair.chunks_C4) for pair in pairs]),
    )
    is_active_BC = recorded["active_chunk_mask"]
    is_inside_BC = (inputs["chunks"][..., 1] <= length) & (inputs["chunks"][..., 1] >= 0)
    right = calm_by_formula(inputs, is_active_BC & is_inside_BC)
    assert case.mean(Calm(T, clamp_student=True)).item() == pytest.approx(right, rel=1e-5)
    assert len(case.targets.truth.chunk_logprob_C) == (is_active_BC & is_inside_BC).sum() < is_active_BC.sum()
    assert (recorded["t_p"][is_active_BC & recorded["chunks_with_empty_teacher_span"]] > 0.999).all()
    wrong = recorded["loss_total"] - float(inputs["ce_loss"])
    assert abs(wrong - right) > 0.1
    assert case.mean(CE).item() == pytest.approx(float(inputs["ce_loss"]), rel=1e-5), "cross-entropy counts all tokens"


def edge_case_arrays(golden_arrays, name):
    prefix = f"case/{name}/"
    return {key.removeprefix(prefix): value for key, value in golden_arrays("edge").items() if key.startswith(prefix)}


def whole_pairs(inputs):
    return [
        SamplePair(
            SampleId(f"sample{b}"), inputs["student_input_ids"][b], inputs["labels"][b] != -100,
            inputs["teacher_input_ids"][b], inputs["chunks"][b][: inputs["n_chunks"][b]],
        )
        for b in range(len(inputs["t"]))
    ]  # fmt: skip


def padded(chunks):
    longest = max(map(len, chunks))
    return np.stack([np.pad(rows, ((0, longest - len(rows)), (0, 0)), constant_values=-1) for rows in chunks])


def position_pairs(inputs, b):
    count = inputs["n_aligned"][b]
    t, s = inputs["align_teacher"][b][:count], inputs["align_student"][b][:count]
    return np.stack([t, t + 1, s, s + 1], axis=1)


def aligned_pair(inputs, b):
    return SamplePair(
        SampleId(f"sample{b}"), inputs["student_input_ids"][b], inputs["labels"][b] != -100,
        inputs["teacher_input_ids"][b], position_pairs(inputs, b),
    )  # fmt: skip


def test_a_pair_at_the_teachers_first_position_is_masked_too(edge_case, golden_arrays):
    """The reference scatters its mask through index lists that are padded with 0, and the padding unmasks position 0.

    The teacher then reads the very token that it is asked for. Right: masked like every other partner of a mask. The
    recorded teacher says the same whatever it is shown, so the loss itself equals ours once the row is there. The case
    pairs tokens of unequal ids, which ours never does; here the teacher's tokens take the ids of their partners.
    """
    recorded = edge_case_arrays(golden_arrays, "aligned_pos0")
    inputs = golden_arrays("aligned_seed0") | {"align_teacher": recorded["align_teacher"]}
    inputs["teacher_input_ids"] = inputs["teacher_input_ids"].copy()
    for b in range(3):
        t, _, s, _ = position_pairs(inputs, b).T
        inputs["teacher_input_ids"][b, t] = inputs["student_input_ids"][b, s]
    teacher_mask = np.stack(
        [
            expand_to_chunks(aligned_pair(inputs, b), is_masked_L)[1]
            for b, is_masked_L in enumerate(recorded["student_mask"])
        ]
    )
    expected = np.zeros_like(teacher_mask)
    for b, pair in np.argwhere(recorded["kl_mask"]):
        expected[b, recorded["align_teacher"][b, pair]] = True
    np.testing.assert_array_equal(teacher_mask, expected)
    assert np.argwhere(teacher_mask != recorded["teacher_mask"]).tolist() == [[1, 0]]
    case = edge_case("aligned_pos0", teacher_mask=teacher_mask, teacher_input_ids=inputs["teacher_input_ids"])
    assert case.mean(ForwardKL(T)).item() == pytest.approx(kl_by_formula(inputs, recorded["kl_mask"]), rel=1e-5)
    loss = mean_with_ce(case, [ForwardKL(T)])
    assert loss.item() == pytest.approx(float(recorded["loss_total"]), rel=1e-5)
    assert_gradient_is_recorded(gradient_of(loss, case), recorded["grad_total"])


@pytest.mark.parametrize("is_all_masked", [False, True])
def test_a_pair_beyond_the_teachers_length_is_dropped(edge_case, golden_arrays, is_all_masked):
    """The reference clamps an index beyond the teacher's length, and compares with whatever stands last there.

    Right: a pair counts only if both of its tokens are there. The recorded masks happen to leave that pair unmasked, so
    the recorded loss is right by luck; with all masked, the clamped index gives another loss than the pairs inside.
    """
    recorded = edge_case_arrays(golden_arrays, "aligned_index_clamped")
    inputs = golden_arrays("aligned_seed0") | {"align_teacher": recorded["align_teacher"]}
    if is_all_masked:
        inputs["student_mask"] = inputs["labels"] != -100
    length = inputs["teacher_logits"].shape[1]
    cut = Limits(length, inputs["student_logits"].shape[1], 1, 0).cut
    pairs = [cut(aligned_pair(inputs, b)) for b in range(3)]
    counts = np.array([len(pair.chunks_C4) for pair in pairs])
    assert counts.sum() == inputs["n_aligned"].sum() - 1
    masks = [
        expand_to_chunks(pair, is_masked_L) for pair, is_masked_L in zip(pairs, inputs["student_mask"], strict=True)
    ]
    chunks = padded([pair.chunks_C4 for pair in pairs])
    case = edge_case(
        "aligned_index_clamped",
        student_mask=inputs["student_mask"],
        teacher_mask=np.stack([teacher for _, teacher in masks]),
        align_teacher=chunks[..., 0],
        align_student=chunks[..., 2],
        n_aligned=counts,
    )
    is_there_BP = np.arange(inputs["align_teacher"].shape[1]) < inputs["n_aligned"][:, None]
    is_masked_BP = is_there_BP & np.take_along_axis(inputs["student_mask"], inputs["align_student"], axis=1)
    right = kl_by_formula(inputs, is_masked_BP & (inputs["align_teacher"] < length))
    assert case.mean(ForwardKL(T)).item() == pytest.approx(right, rel=1e-5)
    clamped = inputs | {"align_teacher": np.minimum(inputs["align_teacher"], length - 1)}
    wrong = kl_by_formula(clamped, is_masked_BP)
    if is_all_masked:
        assert abs(wrong - right) > 0.01
    else:
        np.testing.assert_array_equal(is_masked_BP, recorded["kl_mask"])
        loss = mean_with_ce(case, [ForwardKL(T)])
        assert loss.item() == pytest.approx(float(recorded["loss_total"]), rel=1e-5)
        assert wrong == right


@pytest.mark.parametrize("objective", [Calm(T, clamp_student=True), ReverseCalm(T, clamp_student=True)], ids=repr)
def test_bfloat16_logits_are_compared_in_float32(edge_case, golden_arrays, objective):
    """The reference takes log-probs and sums them over a chunk in the dtype of the logits.

    In bfloat16 a log-prob near -10 is a multiple of 1/16, and the error grows with the chunk. Right: the logits are
    what they are, and everything behind them is float32.
    """
    name = "static_alm_bf16" if isinstance(objective, Calm) else "static_alm_reverse_bf16"
    inputs, recorded = golden_arrays("alm_seed0"), edge_case_arrays(golden_arrays, name)
    rounded = {
        f"{side}_logits": torch.from_numpy(inputs[f"{side}_logits"]).bfloat16().float().numpy()
        for side in ("student", "teacher")
    }
    chosen = [rows[is_chosen] for rows, is_chosen in zip(inputs["chunks"], recorded["chunk_mask"], strict=True)]
    every_student, every_teacher = (np.ones(inputs[f"{side}_mask"].shape, bool) for side in ("student", "teacher"))
    case = edge_case(
        name, **rounded, labels=inputs["student_input_ids"], chunks=padded(chosen),
        n_chunks=np.array([len(rows) for rows in chosen]), student_mask=every_student, teacher_mask=every_teacher,
    )  # fmt: skip
    right = calm_by_formula(inputs | rounded, recorded["chunk_mask"], reverse=isinstance(objective, ReverseCalm))
    assert case.mean(objective).item() == pytest.approx(right, rel=1e-5)
    assert float(recorded["loss_same_logits_in_float32"]) == pytest.approx(right, rel=1e-5)
    assert abs(float(recorded["loss"]) - right) > 1e-3 * right


ACCUMULATED = [CE, CrossEntropy("realised_ratio"), ForwardKL(T), Calm(T), Tidal("kl", T, time_weight="midrange")]


@pytest.mark.parametrize("objective", ACCUMULATED, ids=repr)
def test_unequal_micro_batches_give_the_loss_and_gradient_of_one_batch(example, objective):
    """The reference divides each micro-batch by its own count and averages the quotients.

    A token then counts the more, the fewer others are in its micro-batch. Right: all sums over all counts.
    """
    whole = example(3, num_samples=6)
    parts = [example(3, num_samples=6, samples=samples) for samples in (range(1), range(1, 6))]
    counts = [objective.count(part.targets) for part in parts]
    assert counts[1] > 1.2 * counts[0] > 0
    right, right_gradient = (
        x / objective.count(whole.targets) for x in (whole.loss(objective), whole.gradient(objective))
    )
    ours = sum(part.loss(objective).item() for part in parts) / sum(counts)
    ours_gradient = torch.cat([part.gradient(objective) for part in parts]) / sum(counts)
    assert ours == pytest.approx(right.item(), rel=1e-5, abs=1e-6)  # a sum of differences that nearly cancel
    torch.testing.assert_close(ours_gradient, right_gradient, rtol=1e-4, atol=1e-6)
    wrong = np.mean([part.loss(objective).item() / count for part, count in zip(parts, counts, strict=True)])
    wrong_gradient = torch.cat([part.gradient(objective) / n / 2 for part, n in zip(parts, counts, strict=True)])
    assert abs(wrong - right.item()) > 0.01 * right.item()
    assert (wrong_gradient - right_gradient).norm() > 0.1 * right_gradient.norm()
