"""What an evaluation writes of every completion."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from leftover.evaluation.run import Evaluation
from leftover.models.generate import end_ids, generate
from leftover.prepare.readers import test_rows as rows_of
from leftover.prepare.readers import unique_prompts
from leftover.recipe.files import make_recipe
from leftover.runs.names import read_completions
from leftover.runs.run import Run
from tests.conftest import evaluated

LIMIT = 3


def logprob(model: Any, prompt: list[int], completion: list[int], temperature: float) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    chosen = torch.tensor(completion)[:, None]
    return float((logits / temperature).log_softmax(-1).gather(1, chosen).sum())


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_records_hold_the_log_probabilities_of_the_sampling_and_whether_it_came_to_an_end(
    temperature: float, tiny_recipe: Callable, tokenizer: Any, tmp_path: Path
) -> None:
    ends = tokenizer.convert_ids_to_tokens(list(range(10, len(tokenizer), 4)))
    settings = {"temperature": temperature, "max_new_tokens": LIMIT, "max_prompts": 30}
    settings |= {"decodings": ["greedy", "sampled"]}
    train = {"learning_rate": 1e-2}
    content = tiny_recipe(tmp_path, evaluate=settings, train=train, model={"end_tokens": ends})
    recipe, results = make_recipe(content), evaluated(content)
    this = Run(recipe)
    policy = this.models.load(Evaluation(this).subjects["a_lol_seq-seed-0"][0])
    reference = this.models.reference()
    prompts = [row["prompt_ids"] for row in unique_prompts(rows_of(recipe, this.table))]
    records = read_completions(this.folder, "a_lol_seq-seed-0")
    at_the_limit, log_ratios = 0, []
    for decoding, of_decoding in (("sampled", temperature), ("greedy", 1.0)):
        ids = generate(
            policy, tokenizer, prompts, max_new_tokens=LIMIT, sample=decoding == "sampled", temperature=of_decoding
        ).ids
        written = [record for record in records if record["decoding"] == decoding]
        for prompt, completion, record in zip(prompts, ids, written, strict=True):
            ended = completion[-1] in end_ids(policy)
            at_the_limit += ended and len(completion) == LIMIT
            assert record["ended"] == ended
            column = "sampler_logprob" if of_decoding != 1 else "logprob"
            assert record[column] == pytest.approx(logprob(policy, prompt, completion, of_decoding), abs=1e-4)
            of_reference = logprob(reference, prompt, completion, 1.0)
            assert record["reference_logprob"] == pytest.approx(of_reference, abs=1e-4)
            assert "base_logprob" not in record
            if decoding == "sampled":
                own, start = (logprob(model, prompt, completion, temperature) for model in (policy, reference))
                log_ratios.append(own - start)
    assert at_the_limit > 0
    measured = results["sampled"]["table"]["a_lol_seq"]["kl"]["mean"]
    assert measured == pytest.approx(sum(log_ratios) / len(log_ratios), abs=1e-4)
    assert results["sampled"]["table"]["reference"]["kl"]["mean"] == 0
