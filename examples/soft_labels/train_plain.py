"""Train a classifier on soft labels with Transformers alone: nothing of probekd is imported here.

probekd label examples/quickstart.yaml --export labels/
python examples/soft_labels/train_plain.py labels/ --model models/minilm-l6 --output student/
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, set_seed


def main() -> None:
    """Train on the split ``train``, and print the accuracy on ``test``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="directory that `probekd label --export` wrote, of a classification task")
    parser.add_argument("--model", required=True, help="directory or Hub id of an encoder")
    parser.add_argument("--output", required=True, help="where the student goes")
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    set_seed(args.seed)  # before the head is drawn, which Trainer's own seed comes too late for

    splits = load_dataset(args.dataset)
    names = splits["train"][0]["options"]  # the same in every row
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForSequenceClassification.from_pretrained(
        args.model, id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}
    )

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        texts = [row["question"] for row in rows]
        batch = tokenizer(texts, padding=True, truncation=True, max_length=args.max_length, return_tensors="pt")
        if rows[0]["soft_labels"] is not None:
            batch["labels"] = torch.tensor([row["soft_labels"] for row in rows])
        return dict(batch)

    def soft_cross_entropy(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        # With probabilities as labels this is KL(target || student), up to the target's own entropy.
        return F.cross_entropy(outputs.logits, labels)

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=args.output,
            seed=args.seed,
            num_train_epochs=args.epochs,
            learning_rate=args.learning_rate,
            per_device_train_batch_size=args.batch_size,
            warmup_steps=0.1,
            remove_unused_columns=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=splits["train"],
        data_collator=collate,
        compute_loss_func=soft_cross_entropy,
    )
    trainer.train()
    trainer.save_model(args.output)
    tokenizer.save_pretrained(args.output)
    if "test" in splits:
        logits = trainer.predict(splits["test"]).predictions
        accuracy = float(np.mean(logits.argmax(1) == np.array(splits["test"]["answer"])))
        print(json.dumps({"rows": len(logits), "accuracy": round(accuracy, 4)}))


if __name__ == "__main__":
    main()
