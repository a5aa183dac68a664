"""Files of top-k as engines write them, from a model's exact log-probs."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def vllm_positions(logprobs_MV, ids, top_k, tokenizer):
    """Write what vLLM lists for each token: null for the first, then the true token, and the likeliest behind it."""
    positions = [None]
    for place, logprobs_V in enumerate(logprobs_MV[1:], start=1):
        order = np.argsort(-logprobs_V, kind="stable")[:top_k].tolist()
        ranks = {int(ids[place]): int((logprobs_V >= logprobs_V[ids[place]]).sum())}
        ranks |= {token_id: rank for rank, token_id in enumerate(order, start=1)}
        positions.append(
            {
                str(token_id): {
                    "logprob": float(logprobs_V[token_id]), "rank": rank, "decoded_token": tokenizer.decode([token_id]),
                }
                for token_id, rank in ranks.items()
            }
        )  # fmt: skip
    return positions


def write_jsonl(path, rows):
    """Write one JSON object for each row."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet_lists(path, rows):
    """Write vLLM's rows with a list of structs for each token."""

    def entries(position):
        return position and [{"token_id": int(token_id), **said} for token_id, said in position.items()]

    table = pa.table(
        {
            "prompt_token_ids": [row["prompt_token_ids"] for row in rows],
            "prompt_logprobs": [list(map(entries, row["prompt_logprobs"])) for row in rows],
        }
    )
    pq.write_table(table, path)
    return path


def write_distillkit(folder, texts, logprobs_of, top_k, pad_id, **changes):
    """Write a folder as DistillKit does: ids in packed bits, log-probs as differences, a padding token at the end."""
    folder.mkdir()
    rows = {"input_ids": [], "compressed_logprobs": [], "bytepacked_indices": []}
    vocab_size = None
    for ids in texts:
        ids = [*map(int, ids), pad_id]
        logprobs_MV = logprobs_of(np.array(ids))[1:]
        vocab_size = logprobs_MV.shape[1]
        order_MK = np.argsort(-logprobs_MV, axis=1, kind="stable")[:, :top_k]
        stored_MK = np.take_along_axis(logprobs_MV, order_MK, axis=1).astype(np.float64)
        stored_MK = np.diff(stored_MK, axis=1, prepend=0).astype("<f4")
        rows["input_ids"].append(ids)
        rows["bytepacked_indices"].append([list(packed(row_K, vocab_size)) for row_K in order_MK])
        rows["compressed_logprobs"].append([list(row_K.tobytes()) for row_K in stored_MK])
    pq.write_table(pa.table(rows), folder / "data_0.parquet")
    config = {
        "d": vocab_size, "k": top_k, "exact_k": top_k, "exact_dtype": "float32", "polynomial_terms": None,
        "residual_bins": [], "delta_encoding": True,
    } | changes  # fmt: skip
    (folder / "compression_config.yaml").write_text(json.dumps(config))  # JSON is YAML
    return folder


def packed(ids_K, vocab_size):
    """Pack ids, the highest bit first."""
    num_bits = math.ceil(math.log2(vocab_size))
    bits = "".join(format(token_id, f"0{num_bits}b") for token_id in ids_K.tolist())
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[start : start + 8], 2) for start in range(0, len(bits), 8))
