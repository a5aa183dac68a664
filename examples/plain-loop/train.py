"""Train a student from a cache in a plain PyTorch loop: a stock model of transformers, AdamW, no DeepSpeed.

    python examples/plain-loop/train.py --student CHECKPOINT --cache CACHE --out STUDENT --steps 100

The loss of a step is what `tide-cache train` computes for the same samples: sums of each objective over the step's
micro-batches, divided once by their counts. Several processes would add what DeepSpeed does there: sum the counts over
the ranks, and average the gradients.
"""

import argparse
from itertools import islice
from pathlib import Path

import torch

import tide_cache


def main(arguments: list[str] | None = None) -> None:
    """Train and save; prints the loss of every step."""
    options = _options(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cache = tide_cache.open_cache(options.cache)
    objectives = [(tide_cache.CrossEntropy(), 1.0), (tide_cache.Calm(temperature=5.0), 0.5)]
    dataset = cache.torch_dataset(
        options.student,
        [objective for objective, _ in objectives],
        steps=options.steps,
        global_batch=options.global_batch,
        micro_batch=options.micro_batch,
    )
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=options.workers)
    backbone = tide_cache.load_backbone(tide_cache.read_checkpoint(options.student), torch.float32, str(device))
    model = backbone.model.train()  # a Qwen3ForCausalLM or another stock model; StockBackbone(model) wraps your own
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    needs = tide_cache.union_of_needs(objective.needs for objective, _ in objectives)
    temperatures = sorted(needs.student_temperatures)

    stream = iter(loader)
    for step in range(options.steps):
        micro_batches = list(islice(stream, dataset.micro_batches_per_step))
        counts = [sum(objective.count(targets) for _, targets in micro_batches) for objective, _ in objectives]
        loss_of_step = 0.0
        for on_cpu in micro_batches:
            batch, targets = (tide_cache.on_device(part, device) for part in on_cpu)
            ids_NK, is_kept_NK = tide_cache.ids_to_gather(targets)
            hidden_ND = tide_cache.masked_hidden(backbone, batch, cache.block_size)
            statistics = tide_cache.row_statistics(hidden_ND, backbone.head_VD, ids_NK, temperatures, is_kept_NK)
            loss = sum(
                weight * objective.total(statistics, targets, progress=step / options.steps) / (count or 1.0)
                for (objective, weight), count in zip(objectives, counts, strict=True)
            )
            loss.backward()
            loss_of_step += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1}: loss {loss_of_step:.6f}")

    tokenizer = tide_cache.TextTokenizer.load(options.student)
    tide_cache.save_student(Path(options.out), model.state_dict(), model.config, tokenizer, {"cache": cache.cache_id})


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", required=True, help="checkpoint to start from, with its tokenizer")
    parser.add_argument("--cache", required=True, help="folder or URL of a cache")
    parser.add_argument("--out", required=True, help="folder for the trained student")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--global-batch", type=int, default=8)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches")
    parser.add_argument("--lr", type=float, default=5e-5)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
