"""METEOR and SPICE: two metrics of captions that exist as Java programs only.

Both programs come with pycocoevalcap (extra `java-metrics`) and are given the tokens of
`pipeline.evaluation.scorers.ptb_tokenizer`, as coco-caption gives them those of its Java tokenizer.
No stage uses this file, so no artifact depends on Java. Sources: METEOR, Denkowski and Lavie 2014;
SPICE, Anderson et al. 2016.
"""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.evaluation.scorers.ptb_tokenizer import tokenize

Captions = Sequence[tuple[str, Sequence[str]]]  # each caption with its image's references
_METEOR = ("java", "-jar", "-Xmx2G", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm")
_SILENCE = "nocaption"  # for a caption without words, which would shift METEOR's arguments


def meteor(groups: Mapping[str, Captions]) -> dict[str, float]:
    """Return the METEOR of each group of captions, from 0 to 1, as coco-caption prints it.

    It is not a mean over captions: the program adds up its counts first.

    Raises:
        PipelineError: Java or pycocoevalcap is missing, or the program ends too early.
    """
    folder = Path(str(_module("meteor.meteor").__file__)).parent
    with subprocess.Popen(
        _METEOR,
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    ) as program:
        return {name: _total(program, captions) for name, captions in groups.items()}


def _total(program: "subprocess.Popen[str]", captions: Captions) -> float:
    """Return the METEOR of captions: counts of each, then all counts at once."""
    references, written = _tokenized(captions)
    counts = []
    for number, texts in references.items():
        _tell(program, ["SCORE", *texts, *written[number]])
        counts.append(_hear(program))
    _tell(program, ["EVAL", *counts])
    each_and_all = [float(_hear(program)) for _ in range(len(counts) + 1)]
    return each_and_all[-1]


def _tell(program: "subprocess.Popen[str]", parts: Sequence[str]) -> None:
    assert program.stdin is not None
    try:
        program.stdin.write(" ||| ".join(parts) + "\n")
        program.stdin.flush()
    except BrokenPipeError:
        raise _ended() from None


def _hear(program: "subprocess.Popen[str]") -> str:
    assert program.stdout is not None
    line = program.stdout.readline()
    if not line:
        raise _ended()
    return line.strip()


def _ended() -> PipelineError:
    return PipelineError(
        "METEOR's Java program ended without an answer",
        "it needs 2 GB of free memory; `java -version` says whether Java itself runs",
    )


def spice(groups: Mapping[str, Captions]) -> dict[str, NDArray[np.float64]]:
    """Return the SPICE of every caption of each group, from 0 to 1, float64 [caption].

    Raises:
        PipelineError: Java or pycocoevalcap is missing, or the program does not run: it fetches a
            parser on first use, and needs an older Java.
    """
    module = _module("spice.spice")
    try:
        scorer = module.Spice()
        by_part = {
            name: scorer.compute_score(*_tokenized(captions))[1]
            for name, captions in groups.items()
        }
    except (OSError, subprocess.CalledProcessError) as error:
        raise PipelineError(
            f"SPICE does not run: {str(error).strip().partition(chr(10))[0]}",
            "it needs Java 8 and, once, the network to fetch its parser (Stanford CoreNLP 3.6)",
        ) from None
    return {
        name: np.array([float(each["All"]["f"]) for each in scores])
        for name, scores in by_part.items()
    }


def _module(name: str) -> Any:
    import importlib

    if shutil.which("java") is None:
        raise PipelineError(
            "METEOR and SPICE are Java programs, and java was not found",
            "install a Java runtime, or leave --java out",
        )
    try:
        return importlib.import_module(f"pycocoevalcap.{name}")
    except ModuleNotFoundError as error:
        raise PipelineError(
            f"METEOR and SPICE need the package {error.name}",
            "pip install 'phivision[java-metrics]'",
        ) from None


def _tokenized(captions: Captions) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Return references and captions by number, in the form of coco-caption."""
    references = {
        number: [" ".join(tokenize(text)) for text in texts]
        for number, (_, texts) in enumerate(captions)
    }
    written = {
        number: [" ".join(tokenize(text)) or _SILENCE] for number, (text, _) in enumerate(captions)
    }
    return references, written
