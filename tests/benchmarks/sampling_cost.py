"""What scheduled sampling costs, beside standard training and beside a loop over the tokens.

Run it from the repository root: `python tests/benchmarks/sampling_cost.py`. All three train the
same tiny model on the same batch of captions of 40 tokens; a step is forward and backward through
a frozen language model into the projector. The token loop is the reference system's: for every
token it runs the whole sequence so far, without a cache, and feeds back the model's own token or
the true one by the same coins. Goals: at least 8 times as fast as the loop, at most 2.5 times the
cost of standard.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import PhiConfig, PhiForCausalLM

# A file run by its path finds only its own folder; the packages lie two folders up.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from model.batch import Batch
from model.objectives import scheduled_sampling, standard, true_token_coins
from model.projectors import LinearConfig
from model.vlm import VisionLanguageModel, build_vlm, freeze
from tests.benchmarks.helpers.spread import ratio, spread

PATCHES, VISION, WORDS, RATE = 49, 96, 512, 0.5


def made(rows: int, tokens: int) -> tuple[VisionLanguageModel, Batch]:
    """A tiny model of the demo's size and a batch of equally long captions."""
    torch.manual_seed(0)
    config = PhiConfig(
        vocab_size=WORDS,
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
    )
    vlm = build_vlm(LinearConfig(), VISION, PATCHES, PhiForCausalLM(config))
    freeze(vlm.language_model)
    everything = torch.ones(rows, tokens, dtype=torch.bool)
    ids = torch.randint(WORDS, (rows, tokens))
    return vlm, Batch(torch.randn(rows, PATCHES, VISION), ids, everything, everything)


def token_loop(vlm: VisionLanguageModel, batch: Batch, generator: torch.Generator) -> Tensor:
    """The mean loss of the reference's loop: the whole prefix again for every token."""
    truth = true_token_coins(batch, RATE, generator)
    joint = vlm.embed_images(batch.patches).tokens
    losses = []
    for token in range(batch.input_ids.shape[1]):
        state = vlm.hidden(joint)[:, -1]
        losses.append(vlm.nll(state, batch.input_ids[:, token]))
        fed = torch.where(truth[:, token], batch.input_ids[:, token], vlm.predict(state))
        joint = torch.cat([joint, vlm.embed_text(fed).unsqueeze(1)], dim=1)
    return torch.stack(losses).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)  # processor time is compared, which more threads add up
    vlm, batch = made(given.rows, given.tokens)

    def coins() -> torch.Generator:
        return torch.Generator().manual_seed(1)

    ways: dict[str, Callable[[], Tensor]] = {
        "standard": lambda: standard(vlm, batch).loss,
        "scheduled": lambda: scheduled_sampling(vlm, batch, RATE, coins()).loss,
        "token loop": lambda: token_loop(vlm, batch, coins()),
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(given.repeats + 1):
        for name, loss in ways.items():
            vlm.zero_grad()
            loss().backward()  # what ran before has filled the caches; the second time counts
            vlm.zero_grad()
            began = time.process_time()  # of this process, so that other load does not count
            loss().backward()
            took[name] += [time.process_time() - began] if repeat else []
    for name, seconds in took.items():
        print(f"{name:<11} {spread([given.rows / each for each in seconds], 1)} samples/s")
    faster = ratio(took["token loop"], took["scheduled"], 1)
    print(f"scheduled beside the loop: {faster}; goal 8")
    print(f"scheduled beside standard: {ratio(took['scheduled'], took['standard'])}; goal 2.5")


if __name__ == "__main__":
    main()
