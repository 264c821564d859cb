"""A small Phi of transformers' own class, with a BPE tokenizer, trained on plain text."""

import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import PhiConfig, PhiForCausalLM

from model.language_files import write_language_files
from model.training_schedule import warmup_cosine

EOS = "<|endoftext|>"
POSITIONS = 1024
BLOCK = 192  # tokens of one training row: about one document of the demo


def train_tokenizer(texts: Sequence[str], vocabulary: int, folder: Path) -> Tokenizer:
    """Train a byte-level BPE (the kind GPT-2 and Phi-2 use) and write it to a folder.

    Args:
        texts: Training text.
        vocabulary: Largest number of tokens, the control token included.
        folder: Gets `tokenizer.json` and `tokenizer_config.json`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS, "bos_token": EOS}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
    return tokenizer


def train_tiny_phi(
    documents: Sequence[Sequence[str]],
    folder: Path,
    *,
    vocabulary: int,
    width: int,
    layers: int,
    heads: int,
    epochs: int,
    batch: int,
    learning_rate: float,
    seed: int,
    advance: Callable[[int, str], None],
) -> float:
    """Train a Phi from random weights on packed text, write it, and return the last loss.

    Args:
        documents: Texts that belong together, in any order; each text ends with the end-of-text
            token and the next one of its document follows.
        folder: Where model and tokenizer go, in Hugging Face's layout.
        vocabulary: Tokens of the BPE, at most.
        width: Hidden width.
        layers: Layers.
        heads: Attention heads.
        epochs: Passes over the text, each in another order.
        batch: Rows of `BLOCK` tokens per step.
        learning_rate: Peak of a warm-up and cosine schedule.
        seed: Seed of weights and order.
        advance: Called after every step.
    """
    tokenizer = train_tokenizer([t for texts in documents for t in texts], vocabulary, folder)
    torch.manual_seed(seed)
    lm = PhiForCausalLM(_config(tokenizer, width, layers, heads)).train()
    encoded = _encode(documents, tokenizer)
    rows = len(_pack(encoded, tokenizer, seed))
    batch, steps = min(batch, rows), max(1, rows // batch)
    batches = (
        ids  # rows beyond an epoch's last whole batch are used in another epoch
        for epoch in range(epochs)
        for ids in _pack(encoded, tokenizer, seed + epoch)[: steps * batch].split(batch)
    )
    loss = _fit(lm, batches, epochs * steps, learning_rate, advance)
    write_language_files(lm.eval(), folder)
    return loss


def _fit(
    lm: PhiForCausalLM,
    batches: Iterable[torch.Tensor],
    steps: int,
    learning_rate: float,
    advance: Callable[[int, str], None],
) -> float:
    """Train on token ids [row, BLOCK], one batch per step, and return the last loss."""
    optimizer = torch.optim.AdamW(lm.parameters(), lr=learning_rate, betas=(0.9, 0.95), fused=True)
    schedule = warmup_cosine(optimizer, steps, warmup_share=0.05)
    loss = torch.zeros(())
    for ids in batches:
        logits = lm(input_ids=ids[:, :-1], use_cache=False).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        advance(1, f"loss {loss.item():.3f}")
    return float(loss.detach())


def _config(tokenizer: Tokenizer, width: int, layers: int, heads: int) -> PhiConfig:
    eos = _eos(tokenizer)
    return PhiConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=POSITIONS,
        bos_token_id=eos,
        eos_token_id=eos,
        # transformers' default of 0.02 suits widths of thousands; here attention would start so
        # uniform that telling two objects of a text apart would be learned later.
        initializer_range=width**-0.5,
        resid_pdrop=0.0,
        hidden_act="relu",  # at this width a tenth of a training's time went into Phi-2's GELU
        embd_pdrop=0.0,
        attention_dropout=0.0,
    )


def _eos(tokenizer: Tokenizer) -> int:
    eos = tokenizer.token_to_id(EOS)
    assert eos is not None
    return eos


def _encode(documents: Sequence[Sequence[str]], tokenizer: Tokenizer) -> list[list[list[int]]]:
    return [
        [[*encoding.ids, _eos(tokenizer)] for encoding in tokenizer.encode_batch(list(texts))]
        for texts in documents
    ]


def _pack(documents: list[list[list[int]]], tokenizer: Tokenizer, seed: int) -> torch.Tensor:
    """Return rows [row, BLOCK] of shuffled documents, one after another.

    In a document the longest text comes first and the others in random order, so that most of
    their content has occurred before.
    """
    rng = random.Random(seed)  # noqa: S311
    ids: list[int] = []
    for document in rng.sample(documents, len(documents)):
        shuffled = rng.sample(document, len(document))
        for text in sorted(shuffled, key=lambda text: text is not max(shuffled, key=len)):
            ids.extend(text)
    ids.extend([_eos(tokenizer)] * max(0, BLOCK - len(ids)))
    rows = len(ids) // BLOCK
    return torch.tensor(ids[: rows * BLOCK]).view(rows, BLOCK)
