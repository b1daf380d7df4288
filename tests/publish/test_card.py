"""The card beside every saved model: what it says, what it hides, and that its code runs."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from leftover import LoLConfig, LoLTrainer
from leftover.commands.compare.run import Options, compare
from leftover.demo.grammar import score_answers
from leftover.objectives import OBJECTIVES
from leftover.pipeline import run
from leftover.publish.card import NAME, PICTURE
from leftover.publish.card.method import OTHERS, papers
from leftover.publish.card.public import is_hub_id, public_name, without_paths
from leftover.publish.export import export_policy
from leftover.recipe.files import make_recipe
from leftover.recipe.ppo_config import PPOConfig
from leftover.training.ppo.trainer import PPOTrainer
from tests.conftest import scored_rows

HOSTILE = "x`|<img src=y onerror=alert(1)>](z)"


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Callable) -> dict[str, Any]:
    """The recipe of a finished run of adapters, by absolute paths, in a folder whose name has a space."""
    folder = tmp_path_factory.mktemp("my secret folder")
    content = tiny_recipe(
        folder,
        policies={"a_lol": {"objective": "a_lol"}, "dpo " + HOSTILE: {"objective": "kto"}},
        seeds=[0, 1],
        reward={"functions": [{"type": "python", "function": "leftover.demo.grammar:score_answers", "weight": 0.5}]},
        model={"lora": {"r": 4}},
    )
    run(make_recipe(content, saved=True))
    return content


def cards(content: dict[str, Any]) -> dict[str, ModelCard]:
    folder = Path(content["output_dir"])
    return {str(path.parent.relative_to(folder)): ModelCard.load(path) for path in folder.rglob(NAME)}


def test_every_saved_model_has_a_card_with_data_method_results_and_plot(content: dict[str, Any]) -> None:
    found = cards(content)
    hostile = f"policies/dpo {HOSTILE}/seed-"
    seeds = content["seeds"]
    assert set(found) == {"reference"} | {f"policies/a_lol/seed-{s}" for s in seeds} | {f"{hostile}{s}" for s in seeds}
    results = json.loads((Path(content["output_dir"]) / "results.json").read_text())["sampled"]["table"]["a_lol"]
    card = found["policies/a_lol/seed-0"]
    assert card.data.library_name == "peft"
    assert card.data.pipeline_tag == "text-generation" and "a-lol" in card.data.tags
    assert card.data.base_model is None, "a folder of this machine is no id of the Hub"
    measured = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert measured["reward"] == pytest.approx(results["reward"]["mean"], rel=1e-4)
    assert measured["kl"] == pytest.approx(results["kl"]["mean"], rel=1e-4)
    for said in (
        "objective `a_lol`", "`rows.jsonl` (SHA-256 begins", "48 training, 6 validation, 6 test", "positive advantage",
        "grammar:score_answers | python | 0.5 | none |", "| `learning_rate` | 0.001 |", "| `clip` | 0.9 |",
        f"{results['reward']['mean']:.3f} [{results['reward']['low']:.3f}", "only 6 test prompts", "arXiv 2305.14718",
        "transformers 5", "the mean over the seeds 0, 1; seed 0, this one, has the mean reward", "| `LoRA` | r 4",
    ):  # fmt: skip
        assert said in card.text, said
    assert "2402.01306" in found[f"{hostile}0"].text and "2402.01306" not in card.text
    assert "main_against" not in card.text and "Against its controls" not in found[f"{hostile}0"].text
    assert "behaviour cloning" in found["reference"].text


def test_a_card_shows_its_picture_by_a_relative_link(content: dict[str, Any]) -> None:
    for folder, card in cards(content).items():
        [link] = re.findall(r"!\[Learning curve: [^]]*\]\(([^)]*)\)", card.text)
        assert link == PICTURE
        assert (Path(content["output_dir"]) / folder / link).read_bytes().startswith(b"\x89PNG")


def test_no_folder_of_this_machine_and_no_markup_of_a_name_is_in_a_card(
    content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, tiny_llama_path: str
) -> None:
    private = [content["output_dir"], content["data"]["path"], tiny_llama_path, str(tmp_path_factory.getbasetemp())]
    private += [Path(path).parent.name for path in private[:2]]
    for card in cards(content).values():
        assert not [part for part in private if part in card.content]
        assert "<img" not in card.text.replace("\\<img", "") and not re.search(r"(?<!\\)\]\(z", card.text)
        bars = [line.count("|") - line.count("\\|") for line in card.text.splitlines() if line.startswith("| range")]
        assert set(bars) <= {4, 5}, "a name cuts no cell in two"  # with a column of the data where it has rewards


def test_the_code_of_a_card_runs(content: dict[str, Any], monkeypatch: Any, capsys: Any) -> None:
    folder = Path(content["output_dir"])
    found = cards(content)
    for name in ("reference", "policies/a_lol/seed-0"):
        [code] = re.findall(r"```python\n(.*?)```", found[name].text, re.DOTALL)
        assert len(code.strip().splitlines()) <= 10
        monkeypatch.chdir(folder / name)
        exec(code, {})
        assert "A prompt in the form of the training data" in capsys.readouterr().out


def test_a_card_is_written_again_when_results_change_and_nothing_is_trained_for_it(
    content: dict[str, Any],
) -> None:
    weights = Path(content["output_dir"]) / "policies/a_lol/seed-0/adapter_model.safetensors"
    before = weights.stat().st_mtime_ns
    changed = json.loads(json.dumps(content)) | {"evaluate": content["evaluate"] | {"primary": "greedy"}}
    run(make_recipe(changed, saved=True))
    assert "Greedy completions of 6" in cards(content)["policies/a_lol/seed-0"].text
    assert "do_sample=False" in cards(content)["policies/a_lol/seed-0"].text
    assert weights.stat().st_mtime_ns == before


@pytest.mark.parametrize("merge", [False, True])
def test_an_export_has_a_card_of_what_it_holds(
    content: dict[str, Any], tmp_path: Path, merge: bool, monkeypatch: Any, capsys: Any
) -> None:
    target = export_policy(content["output_dir"], policy="a_lol", output=tmp_path / "out", merge=merge)
    card = ModelCard.load(target / NAME)
    adapter = not merge
    assert card.data.library_name == ("peft" if adapter else "transformers") and (target / PICTURE).is_file()
    assert ("these weights are an adapter of it" in card.text) == adapter and "## Results" in card.text
    [code] = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    monkeypatch.chdir(target)
    exec(code, {})
    assert "A prompt in the form" in capsys.readouterr().out


def test_a_comparison_and_an_online_policy_have_cards_and_conversations_a_chat(
    tmp_path: Path, tiny_recipe: Callable, monkeypatch: Any, capsys: Any
) -> None:
    rows = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in scored_rows(60)]
    for row in rows:
        row["completion"] = [{"role": "assistant", "content": row["completion"]}]
    content = tiny_recipe(
        tmp_path,
        rows=rows,
        model={"chat_template": "plain"},
        reward={"functions": [{"type": "text", "function": "length"}]},
        policies={
            "ppo": {"objective": "ppo", "num_rollouts_per_step": 4, "total_episodes": 8},
            "nll": {"objective": "nll"},
        },
    )
    compare(make_recipe(content), Options(seeds=1))
    found = cards(content)
    assert set(found) == {"reference", "policies/ppo/seed-0", "policies/nll/seed-0"}
    card = found["policies/ppo/seed-0"]
    assert "1707.06347" in card.text and "| `kl_coef` | 0.05 |" in card.text and "online-rl" in card.data.tags
    assert re.search(r"\|  \| ppo \| reference \| data \|", card.text), "as the comparison has them"
    [code] = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert "apply_chat_template" in code
    monkeypatch.chdir(Path(content["output_dir"]) / "policies/ppo/seed-0")
    exec(code, {})
    assert "Human: Hello" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["full", "adapter", "ppo"])
def test_a_trainer_without_a_recipe_makes_a_card_without_results(
    kind: str, tmp_path: Path, tiny_llama_path: str, monkeypatch: Any, capsys: Any
) -> None:
    from peft import LoraConfig

    shared: dict[str, Any] = {"output_dir": str(tmp_path / "my-policy"), "max_steps": 2, "max_completion_length": 8}
    shared |= {"per_device_train_batch_size": 4, "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 1}
    rows = scored_rows(12)
    trainer: Any
    if kind == "ppo":
        args = PPOConfig(**shared, num_rollouts_per_step=4, ppo_epochs=1)
        trainer = PPOTrainer(tiny_llama_path, args, rows, reward_funcs=score_answers)
    else:
        peft_config = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules="all-linear") if kind == "adapter" else None
        args = LoLConfig(
            **(shared | {"max_completion_length": 64}), objective="wbc", rows="all", value_targets="recorded"
        )
        positive = [row | {"reward": row["reward"] + 2} for row in rows]
        trainer = LoLTrainer(tiny_llama_path, args, positive, peft_config=peft_config)
    trainer.train()
    trainer.save_model()
    folder = tmp_path / "my-policy"
    assert (folder / NAME).is_file() == (kind == "adapter"), "in the place of peft's form"
    assert not list(folder.glob(f"checkpoint-*/{NAME}"))
    trainer.create_model_card(license="mit", tags="mine", model_name="Mine", dataset_tags=["org/rows"])
    card = ModelCard.load(folder / NAME)
    assert card.data.license == "mit" and card.data.datasets == ["org/rows"] and "mine" in card.data.tags
    assert card.data.library_name == ("peft" if kind == "adapter" else "transformers")
    assert "# Mine" in card.text and "## Results" not in card.text and "[More Information Needed]" not in card.text
    assert f"objective `{'ppo' if kind == 'ppo' else 'wbc'}`" in card.text and "Trained for 2 steps" in card.text
    assert str(tmp_path) not in card.content and str(Path(tiny_llama_path).parent) not in card.content
    [code] = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    monkeypatch.chdir(folder)
    exec(code, {})
    assert "A prompt in the form" in capsys.readouterr().out


def test_names_of_the_hub_are_told_from_paths(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/tiny").mkdir(parents=True)
    assert is_hub_id("org/name") and is_hub_id("gpt2")
    for path in ("models/tiny", "/models/tiny", "~/m", "./m", "../m", r"C:\m", "a/b/c", None):
        assert not is_hub_id(path)
    assert [public_name(p) for p in ("org/name", "models/tiny", "/a/b c/", r"C:\x\y")] == [
        "org/name",
        "tiny",
        "b c",
        "y",
    ]
    settings = {"a": ["/my own/x.py:f", {"b": "models/tiny"}], "c": "/"}
    said = without_paths("f of /my own/x.py:f, models/tiny; see (/other/dir/y) and ~/z/w", settings)
    assert said == "f of x.py:f, tiny; see (y) and w"
    kept = "https://arxiv.org/abs/2305.14718 distinct-1/2/3 reward/length and/or 1 / 2 org/name"
    assert without_paths(kept, settings) == kept


def test_objectives_of_other_papers_cite_them_and_no_paper_is_of_none() -> None:
    assert set(OTHERS) <= {*OBJECTIVES, "ppo"}
    assert [p.arxiv for p in papers("dpo")] == ["2305.18290", "2305.14718"] and len(papers("a_lol_seq")) == 1
    table = Path("docs/paper.md").read_text(encoding="utf-8") if Path("docs/paper.md").is_file() else ""
    stated = dict(re.findall(r"^\| `(\w+)` \| (\d{4}\.\d{5})", table, re.MULTILINE))
    assert {name: OTHERS[name].arxiv for name in stated} == stated
