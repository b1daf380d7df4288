"""Pushing policies to the Hub, whose functions are stubs that take what the real ones take and keep it."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import CommitInfo, HfApi, ModelCard, RepoUrl
from huggingface_hub.errors import HfHubHTTPError

from leftover import LoLConfig, LoLTrainer, cli
from leftover.errors import UserError
from leftover.pipeline import run
from leftover.publish.hub import Target, best_seed, check_id, check_login, targets, upload, with_push
from leftover.recipe.files import make_recipe
from leftover.recipe.sections import Recipe
from tests.conftest import scored_rows

TOKEN = "hf_canary0123456789"
FILES = {"README.md", "learning_curve.png", "model.safetensors", "config.json", "generation_config.json"}
FILES |= {"tokenizer.json", "tokenizer_config.json"}


class Hub:
    """What was asked of the stub: repositories made, and uploads with the content of their files."""

    def __init__(self) -> None:
        self.account: Any = {"name": "me", "orgs": [{"name": "Lab"}], "auth": {"accessToken": {"role": "write"}}}
        self.made: list[tuple[str, bool | None]] = []
        self.uploads: list[tuple[str, dict[str, bytes]]] = []
        self.asked = 0

    def whoami(self, api: Any) -> Any:
        self.asked += 1
        if isinstance(self.account, Exception):
            raise self.account
        return self.account

    def create_repo(self, api: Any, repo_id: str, **options: Any) -> RepoUrl:
        assert options["exist_ok"] is True
        self.made.append((repo_id, options.get("private")))
        full = repo_id if "/" in repo_id else f"me/{repo_id}"
        return RepoUrl(f"https://huggingface.co/{full}")

    def upload_folder(self, api: Any, *, repo_id: str, folder_path: Any, **options: Any) -> CommitInfo:
        folder = Path(folder_path)
        kept = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        self.uploads.append((repo_id, kept))
        where = f"https://huggingface.co/{repo_id}/commit/1"
        return CommitInfo(commit_url=where, commit_message="", commit_description="", oid="1")


@pytest.fixture
def hub(monkeypatch: Any) -> Hub:
    stub = Hub()
    for name in ("whoami", "create_repo", "upload_folder"):
        real, fake = inspect.signature(getattr(HfApi, name)), getattr(stub, name)

        def called(api: Any, *args: Any, _real: Any = real, _fake: Any = fake, **kwargs: Any) -> Any:
            _real.bind(api, *args, **kwargs)  # what the real one refuses is refused
            return _fake(api, *args, **kwargs)

        monkeypatch.setattr(HfApi, name, called)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return stub


def small(**changes: Any) -> Recipe:
    content: dict[str, Any] = {"name": "r", "output_dir": "runs/r", "model": {"path": "org/m"}, "data": {"path": "d"}}
    return make_recipe(content | changes, saved=True)


TWO: dict[str, Any] = {"policies": {"a lol": {"objective": "a_lol"}, "nll": {"objective": "nll"}}}
PUSH = {"push_to_hub": True, "hub_model_id": "me/x"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Callable) -> dict[str, Any]:
    """The recipe of a finished run of adapters on a base that is a folder, with two seeds."""
    content = tiny_recipe(tmp_path_factory.mktemp("hub"), seeds=[0, 1], model={"lora": {"r": 4}})
    run(make_recipe(content))
    return content


def write(content: dict[str, Any], folder: Path) -> str:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(content))
    return str(path)


def test_a_run_pushes_its_model_tokenizer_card_and_plot_and_nothing_else(
    finished: dict[str, Any], hub: Hub, tmp_path: Path, capsys: Any
) -> None:
    weights = {p: p.stat().st_mtime_ns for p in Path(finished["output_dir"]).rglob("*.safetensors")}
    cli.main(["run", write(finished, tmp_path), "--push-to-hub", "lab/tiny", "--private"])
    assert hub.made == [("lab/tiny", True)] and hub.asked == 1
    [(where, files)] = hub.uploads
    assert where == "lab/tiny" and set(files) == FILES, "merged: nobody else has the adapter's base"
    card = ModelCard(files["README.md"].decode())
    assert 'path = "lab/tiny"' in card.text and card.data.library_name == "transformers"
    assert card.data.eval_results[0].metric_type == "reward"
    private = [str(Path(finished[section][key]).parent) for section, key in (("data", "path"), ("model", "path"))]
    private.append(TOKEN)
    assert not [(name, part) for name, content in files.items() for part in private if part.encode() in content]
    assert weights == {p: p.stat().st_mtime_ns for p in Path(finished["output_dir"]).rglob("*.safetensors")}
    everything = b"".join(p.read_bytes() for p in Path(finished["output_dir"]).rglob("*") if p.is_file())
    said = capsys.readouterr()
    assert TOKEN.encode() not in everything and TOKEN not in said.out + said.err


def test_a_finished_policy_is_pushed_by_export_and_kept_where_asked(
    finished: dict[str, Any], hub: Hub, tmp_path: Path, capsys: Any
) -> None:
    folder = finished["output_dir"]
    cli.main(["export", folder, "--seed", "1", "--push-to-hub", "tiny", "--output", str(tmp_path / "out")])
    assert hub.made == [("tiny", None)], "public or as the organisation has it, as transformers does"
    assert hub.uploads[0][0] == "me/tiny" and set(hub.uploads[0][1]) == FILES
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    assert "- Seed: 1" in hub.uploads[0][1]["README.md"].decode()
    assert "https://huggingface.co/me/tiny" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["export", folder, "--private"])
    assert "--private goes with --push-to-hub" in capsys.readouterr().err and len(hub.uploads) == 1


def test_an_adapter_of_a_base_on_the_hub_stays_one(finished: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    from leftover.publish import export

    source = Path(finished["output_dir"]) / "policies/a_lol_seq/seed-0"
    assert export._lost_elsewhere(source)
    monkeypatch.setattr(export, "base_path", lambda path: "org/base")
    assert not export._lost_elsewhere(source)
    assert not export._lost_elsewhere(Path(finished["model"]["path"])), "whole weights"


def test_who_may_not_push_is_told_before_anything_is_computed(
    hub: Hub, tmp_path: Path, tiny_recipe: Callable, capsys: Any, monkeypatch: Any
) -> None:
    content = tiny_recipe(tmp_path)
    recipe = write(content, tmp_path)
    reads = {"name": "me", "orgs": [], "auth": {"accessToken": {"role": "read"}}}
    for account, said in (
        (reads, "can only read"),
        ({"name": "you", "orgs": [], "auth": {}}, "'you' may not push to 'me/x'"),
        (refusal(401, f"Invalid token {TOKEN}"), "HF_TOKEN, or run `hf auth login`"),
        (httpx2.ConnectError("no route to host"), "no route to host"),
    ):
        hub.account = account
        with pytest.raises(SystemExit) as stopped:
            cli.main(["run", recipe, "--push-to-hub", "me/x"])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and said in error and TOKEN not in error
        assert not Path(content["output_dir"]).exists()


def refusal(status: int, words: str) -> HfHubHTTPError:
    response = httpx2.Response(status, request=httpx2.Request("GET", "https://huggingface.co/api/whoami-v2"))
    return HfHubHTTPError(words, response=response, server_message=words)


def test_without_a_token_or_offline_the_real_library_is_understood(monkeypatch: Any) -> None:
    monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: None)
    with pytest.raises(UserError, match=r"without a token: .*HF_TOKEN"):
        check_login(["me/x"])
    monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: TOKEN)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set") as error:  # which conftest has done
        check_login(["me/x"])
    assert TOKEN not in str(error.value)
    check_login([])


def test_an_upload_that_the_hub_refuses_is_said_in_its_words(hub: Hub, tmp_path: Path, monkeypatch: Any) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise refusal(403, "You have no rights here")

    monkeypatch.setattr(HfApi, "create_repo", refused)
    with pytest.raises(UserError, match=r"'me/x'.*403: You have no rights here"):
        upload(tmp_path, "me/x")


def test_settings_of_a_recipe_and_the_option_ask_for_the_same() -> None:
    assert targets(small(**TWO)) == []
    alone = Target("a lol", None, "me/x", None)
    assert targets(with_push(small(**TWO), "me/x")) == [alone]
    in_recipe = small(policies={"a lol": TWO["policies"]["a lol"] | PUSH, "nll": {"objective": "nll"}})
    assert targets(in_recipe) == [alone] == targets(small(train=PUSH, policies={"a lol": {"objective": "a_lol"}}))
    every = targets(with_push(small(**TWO, seeds=[0, 3]), "me/{policy}-seed-{seed}", private=True))
    assert [t.hub_id for t in every] == ["me/a-lol-seed-0", "me/a-lol-seed-3", "me/nll-seed-0", "me/nll-seed-3"]
    assert {t.private for t in every} == {True} and [t.seed for t in every] == [0, 3, 0, 3]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (TWO | {"train": PUSH}, "'a lol' and 'nll' would both be pushed to 'me/x'"),
        (TWO | {"train": PUSH | {"hub_model_id": "me/x-{seed}"}}, "would both be pushed to 'me/x-0'"),
        ({"train": {"push_to_hub": True}}, "push_to_hub needs hub_model_id"),
        ({"train": PUSH | {"hub_model_id": "/home/me/x"}}, "OWNER/NAME"),
        ({"train": {"hub_token": TOKEN}}, "'train.hub_token' cannot be set here"),
        ({"train": {"hub_strategy": "checkpoint"}}, "without its checkpoints"),
        ({"reference": {"train": PUSH}}, "policies are pushed, under 'policies' or 'train'"),
    ],
)
def test_what_cannot_be_pushed_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        targets(small(**changes))
    assert said in str(error.value) and TOKEN not in str(error.value)


@pytest.mark.parametrize("name", ["", "a/b/c", "../x", "a--b", "a/b.git", "a/-b", "a b", "x" * 97])
def test_what_is_no_id_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="OWNER/NAME"):
        check_id(name)


def test_of_several_seeds_the_one_best_on_the_selection_prompts_goes() -> None:
    assert best_seed({3: None, 4: 0.5, 5: 0.5}) == 4


def test_a_trainer_of_a_script_pushes_our_card(hub: Hub, tmp_path: Path, tiny_llama_path: str) -> None:
    from peft import LoraConfig

    args = LoLConfig(
        output_dir=str(tmp_path / "out"), objective="nll", max_steps=1, save_strategy="no", hub_model_id="me/mine",
        per_device_train_batch_size=2,
    )  # fmt: skip
    adapter = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules="all-linear")
    trainer = LoLTrainer(tiny_llama_path, args, scored_rows(4), peft_config=adapter)
    trainer.train()
    trainer.push_to_hub()
    card = hub.uploads[0][1]["README.md"].decode()
    assert "# mine" in card and 'path = "me/mine"' in card and "More Information Needed" not in card
