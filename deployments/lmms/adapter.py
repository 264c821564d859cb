"""The published assistant as a model of lmms-eval: `lmms-eval --model phivision`.

Prompts and images are prepared as in training and in `phivision ask`, and an answer is exactly the
text that `ask` gives, unless the task asks for another decoding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from lmms_eval.api.instance import Instance  # ty: ignore[import-not-found]
from lmms_eval.api.model import lmms  # ty: ignore[import-not-found]
from tqdm import tqdm

from deployments.lmms.requests import NOTHING, Question, batches, one_image, read_writing
from flows.commands.assistant import open_assistant
from flows.commands.options import settings_of
from model.decoding import decode_image
from model.errors import ModelError
from model.generation import generate
from pipeline.errors import PipelineError
from pipeline.training.collate import collate

_MARK = "<image>"  # some tasks mark the image's position; here it always precedes the text
_ARGUMENTS = 6  # context, settings or answer, doc_to_visual, number of the document, task, split


class PhiVision(lmms):
    """A bundle behind lmms-eval's interface of models; one process, one device.

    Args:
        pretrained: A bundle's folder or `hf://owner/name`; if empty, the published assistant of
            the store that PHIVISION_STORE names.
        batch_size: Questions per forward pass.
        device: `cpu` or `cuda`; if empty, chosen automatically.
        max_batch_size: Passed by lmms-eval for models that search for a batch size; not used.

    Raises:
        PipelineError: There is no such assistant, or the batch size is not a positive number.
    """

    is_simple = True  # takes text and images, not chat messages

    def __init__(
        self,
        pretrained: str = "",
        batch_size: int | str = 1,
        device: str = "",
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        del max_batch_size
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise PipelineError(
                f"the batch size {batch_size} is not a positive whole number",
                "give --batch_size 16",
            )
        settings = settings_of(None, device=device.partition(":")[0] or None)
        self.assistant = open_assistant(settings, pretrained or None)
        self.batch_size, self.device = int(batch_size), torch.device(self.assistant.device)
        card = self.assistant.card
        self._beams, self._tokens = card["beams"], card["max_new_tokens"]
        self._longest = self.assistant.room + self._tokens

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Return an answer to each request, in order; an empty question asks for a caption.

        `max_new_tokens` is lowered where the language model runs out of positions.

        Raises:
            PipelineError: A request does not have exactly one image.
            ModelError: A question leaves no room for an answer.
        """
        answers = [""] * len(requests)
        for batch in self._batches(requests):
            texts = generate(
                self.assistant.vlm,
                self._see(batch),
                [question.ids for question in batch],
                eos_id=self.assistant.template.eos_id,
                max_new_tokens=batch[0].writing.max_new_tokens,
                decoding=batch[0].writing.decoding,
            )
            for question, text in zip(batch, texts, strict=True):
                answer = question.writing.cut(self.assistant.template.decode(text.ids))
                answers[question.number] = answer
                context, asked = requests[question.number].args[:2]
                self.cache_hook.add_partial("generate_until", (context, asked), answer)
        return answers

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Return each continuation's nats per token and whether greedy search would write it.

        Despite the method's name this is the mean loss over the continuation, as in lmms-eval's
        own models: of a multiple choice lmms-eval picks the smallest number. The token that ends
        an answer is not counted.

        Raises:
            PipelineError: A request does not have exactly one image.
            ModelError: Question and continuation are too long for the language model.
        """
        judged_by_number = [(0.0, False)] * len(requests)
        vlm = self.assistant.vlm
        for batch in self._batches(requests):
            ids = [np.array(question.ids, np.int64) for question in batch]
            judged = [
                np.arange(len(each)) >= len(each) - question.targets
                for each, question in zip(ids, batch, strict=True)
            ]
            texts = collate(self._see(batch), ids, judged).to(self.device)
            with torch.inference_mode():
                states, targets, *_ = vlm.supervised_states(texts)
                nats = vlm.nll(states, targets).double().cpu().numpy()
                same = (vlm.predict(states) == targets).cpu().numpy()
            ends = np.cumsum([question.targets for question in batch])[:-1]
            parts = zip(batch, np.split(nats, ends), np.split(same, ends), strict=True)
            for question, mine, greedy in parts:
                judged_by_number[question.number] = float(mine.mean()), bool(greedy.all())
        return judged_by_number

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> NoReturn:
        """Refuse multi-turn tasks.

        Raises:
            PipelineError: Always.
        """
        raise PipelineError(
            "phivision answers one question at a time, but this task is multi-turn",
            "choose a task of the type generate_until or multiple_choice",
        )

    def _batches(self, requests: Sequence[Instance]) -> Iterator[list[Question]]:
        """Yield all requests in batches, behind a progress bar."""
        asked = [self._read(number, each.args) for number, each in enumerate(requests)]
        with tqdm(total=len(asked), disable=self.rank != 0, desc="phivision") as bar:
            for batch in batches(asked, self.batch_size):
                yield batch
                bar.update(len(batch))

    def _read(self, number: int, arguments: tuple[Any, ...]) -> Question:
        if len(arguments) < _ARGUMENTS:
            raise PipelineError(
                "the task asks for the likelihood of an answer without its image",
                "phivision always needs an image: leave out the metric acc_mutual_info",
            )
        context, second, visuals, place, task, split = arguments
        documents, template = self.task_dict[task][split], self.assistant.template
        asked = " ".join(context.replace(_MARK, " ").split())
        ids = template.question(asked) if asked else template.caption_prompt
        judged: list[int] = []
        writing, room = NOTHING, self._longest - len(ids)
        if isinstance(second, Mapping):
            writing = read_writing(second, self._beams, self._tokens, room)
        else:
            text = second if isinstance(second, str) else second(documents[place])
            # In training an answer may begin with a space; a caption begins with its first word.
            said = str(text).strip()
            judged = template.answer(said) if asked else template.captioned(said)
        if room < max(len(judged), 1):
            raise ModelError(
                f"task {task}, document {place}: the question has {len(ids)} tokens and its answer "
                f"{len(judged)}, but only {self._longest} fit after the image"
            )
        # Loaded only when its batch comes: a benchmark may have 200,000 images.
        show = partial(_shown, visuals, documents, place, task)
        return Question(number, show, [*ids, *judged], len(judged), writing)

    def _see(self, batch: Sequence[Question]) -> torch.Tensor:
        """Return the patch embeddings [question, patch, vision] of a batch's images."""
        most = self.assistant.card["max_pixels"]
        images = [decode_image(question.show(), most) for question in batch]
        return self.assistant.encoders.encode(images)


def _shown(visuals: Callable[[Any], Any], documents: Any, place: int, task: str) -> bytes:
    return one_image(visuals(documents[place]), task)
