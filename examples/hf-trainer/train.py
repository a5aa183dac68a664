"""Train a student from a cache with the `Trainer` of transformers; one process.

    python examples/hf-trainer/train.py --student CHECKPOINT --cache CACHE --out STUDENT --steps 100

Three methods of `Trainer` are replaced. Its loader becomes the cache's stream of micro-batches. A step's micro-batches
are counted together before their forwards, because a mean of means is not the mean over a step. The loss is the sum of
the objectives, divided by these counts.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

import tide_cache


class CacheTrainer(Trainer):
    """A `Trainer` whose loss is a weighted sum of objectives over a cache's micro-batches."""

    def __init__(self, *arguments: Any, objectives: tuple[tide_cache.Objective, ...], **options: Any):
        super().__init__(*arguments, **options)
        self.objectives = objectives
        self.temperatures = sorted(
            tide_cache.union_of_needs(objective.needs for objective in objectives).student_temperatures
        )
        self.model_accepts_loss_kwargs = True  # the loss is divided for the whole step, and not again

    def get_train_dataloader(self) -> DataLoader:
        """Return the stream as it is; it is batched, and in order, already."""
        return DataLoader(self.train_dataset, batch_size=None, num_workers=self.args.dataloader_num_workers)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """Take a step's micro-batches, and count for each objective what its sum is divided by."""
        micro_batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = [sum(objective.count(targets) for _, targets in micro_batches) for objective in self.objectives]
        return micro_batches, torch.tensor(counts, device=device)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: torch.Tensor | None = None
    ) -> Any:
        """Return this micro-batch's part of the step's loss."""
        batch, targets = (tide_cache.on_device(part, self.args.device) for part in inputs)
        tensors = model(batch, *tide_cache.ids_to_gather(targets), self.temperatures)
        statistics = tide_cache.RowStatistics(*tensors, tuple(self.temperatures))
        progress = self.state.global_step / self.state.max_steps
        loss = sum(
            objective.weight * objective.total(statistics, targets, progress) / count.clamp(min=1e-9)
            for objective, count in zip(self.objectives, num_items_in_batch, strict=True)
        )
        return (loss, statistics) if return_outputs else loss


def main(arguments: list[str] | None = None) -> None:
    """Train and save; `Trainer` prints the losses."""
    options = _options(arguments)
    preset = tide_cache.PRESETS[options.preset]
    cache = tide_cache.open_cache(options.cache, signal_pass=preset.signal_pass)
    objectives = tide_cache.preset_objectives(options.preset)
    dataset = cache.torch_dataset(
        options.student,
        objectives,
        steps=options.steps,
        global_batch=options.global_batch,
        micro_batch=options.micro_batch,
    )
    checkpoint = tide_cache.read_checkpoint(options.student)
    backbone = tide_cache.load_backbone(checkpoint, torch.float32, "cpu")
    trainer = CacheTrainer(
        model=tide_cache.Student(backbone, cache.block_size, slice_rows=256),
        args=TrainingArguments(
            options.out,
            max_steps=options.steps,
            gradient_accumulation_steps=dataset.micro_batches_per_step,
            learning_rate=options.lr,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=dataset,
        objectives=objectives,
    )
    trainer.train()
    model, tokenizer = backbone.model, tide_cache.TextTokenizer.load(options.student)
    tide_cache.save_student(Path(options.out), model.state_dict(), model.config, tokenizer, {"cache": cache.cache_id})


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", required=True, help="checkpoint to start from, with its tokenizer")
    parser.add_argument("--cache", required=True, help="folder or URL of a cache")
    parser.add_argument("--out", required=True, help="folder for the trained student")
    parser.add_argument("--preset", default="shared/calm", help="row of the paper's table")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--global-batch", type=int, default=8)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=5e-5)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
