"""Pushing finished policies to the Hub: where each goes, whether that is possible, and the upload."""

import logging
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from leftover.errors import UserError
from leftover.recipe.sections import Recipe
from leftover.runs.finished import FinishedRun
from leftover.runs.names import policy_artifact
from leftover.services.credentials import hide

log = logging.getLogger(__name__)

# Settings of LoLConfig that a run reads itself: its trainers do not push, so their checkpoints stay local.
HUB_KEYS = ("push_to_hub", "hub_model_id", "hub_private_repo")
# Left by an earlier push, an adapter beside merged weights would be applied to them a second time.
_WEIGHTS = ["model*.safetensors", "model.safetensors.index.json", "adapter_model*.safetensors", "adapter_config.json"]
_PART = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?"
_ID = re.compile(rf"(?:{_PART}/)?{_PART}")
_PRIVATE_ALONE = "--private goes with --push-to-hub: nothing is pushed"
_LOGIN = "set the environment variable HF_TOKEN, or run `hf auth login`, with a token that can write"


class Target(NamedTuple):
    """A policy that goes to the Hub."""

    policy: str
    seed: int | None  # None: the best one on the selection prompts
    hub_id: str
    private: bool | None  # None: as transformers, public unless the organisation's default is private


def with_push(recipe: Recipe, hub_id: str | None, private: bool = False) -> Recipe:
    """The recipe with its first policy (every one if the id has {policy}) pushed to `hub_id`.

    `private` without an id is for what the recipe pushes itself. Raises UserError if it pushes nothing.
    """
    fields: dict[str, Any] = {"hub_private_repo": True} if private else {}
    if hub_id is None and private and not targets(recipe):
        raise UserError(_PRIVATE_ALONE)
    if hub_id is not None:
        fields |= {"push_to_hub": True, "hub_model_id": hub_id}
    if hub_id is None or "{policy}" in hub_id:
        return recipe.model_copy(update={"train": recipe.train | fields})
    main = recipe.main_policy
    return recipe.model_copy(update={"policies": recipe.policies | {main: recipe.policies[main] | fields}})


def targets(recipe: Recipe) -> list[Target]:
    """What the recipe asks to push. Raises UserError for a missing or invalid id, or one that two policies share."""
    found: dict[str, Target] = {}
    for policy, own in recipe.policies.items():
        fields = recipe.train | own
        if not fields.get("push_to_hub"):
            continue
        given = fields.get("hub_model_id")
        if not given:
            raise UserError(f"policy '{policy}': push_to_hub needs hub_model_id, as OWNER/NAME")
        for seed in recipe.seeds if "{seed}" in given else [None]:
            part = re.sub(r"[^A-Za-z0-9._]+|[.-]{2,}", "-", policy).strip("-._")
            hub_id = given.replace("{policy}", part).replace("{seed}", str(seed))
            check_id(hub_id)
            other = found.setdefault(hub_id.lower(), Target(policy, seed, hub_id, fields.get("hub_private_repo")))
            if other.policy != policy:
                raise UserError(
                    f"policies '{other.policy}' and '{policy}' would both be pushed to '{hub_id}': set push_to_hub and "
                    "hub_model_id under policies.NAME of only one, or put {policy} into the id"
                )
    return list(found.values())


def export_and_push(folder: str | Path, hub_id: str | None, private: bool, **options: Any) -> str:
    """`push_policy`, which gets `options`, after checking that it can succeed; returns the address."""
    if hub_id is None:
        raise UserError(_PRIVATE_ALONE)
    check_id(hub_id)
    check_login([hub_id])
    return push_policy(folder, hub_id, private=private or None, **options)


def check_id(hub_id: str) -> None:
    """Raise UserError for an id that no model on the Hub can have."""
    if not _ID.fullmatch(hub_id) or len(hub_id) > 96 or re.search(r"--|\.\.|\.git$", hub_id):
        raise UserError(f"'{hub_id}' is not a Hub id: write OWNER/NAME with letters, digits, '-', '_' and '.'")


def check_login(hub_ids: Sequence[str]) -> None:
    """Raise UserError, before hours of training, if we may not write to one of the ids."""
    from huggingface_hub import HfApi

    if not hub_ids:
        return
    with _hub_errors("log in"):
        account = HfApi().whoami()
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise UserError(f"the token of '{account['name']}' can only read: {_LOGIN}")
    owners = [account["name"], *(organisation["name"] for organisation in account.get("orgs", []))]
    for hub_id in hub_ids:
        owner = hub_id.rpartition("/")[0]
        if owner and owner.lower() not in (name.lower() for name in owners):
            raise UserError(f"'{account['name']}' may not push to '{hub_id}', only to ids of {', '.join(owners)}")


def push_run(run: FinishedRun) -> None:
    """Push what the settings of a finished run ask for."""
    for policy, seed, hub_id, private in targets(run.recipe):
        if seed is None:
            facts = {s: run.manifest.facts(policy_artifact(policy, s)) for s in run.recipe.seeds}
            seed = best_seed({s: of.get("best_metric") for s, of in facts.items()})
        push_policy(run.folder, hub_id, policy=policy, seed=seed, private=private)


def best_seed(metrics: Mapping[int, float | None]) -> int:
    """The first seed whose checkpoint was best on the selection prompts; None: not measured."""
    measured = {seed: -math.inf if metric is None else float(metric) for seed, metric in metrics.items()}
    return max(measured, key=measured.__getitem__)


def push_policy(
    folder: str | Path,
    hub_id: str,
    *,
    policy: str | None,
    seed: int | None,
    private: bool | None,
    merge: bool = False,
    output: str | Path | None = None,
) -> str:
    """Export one policy to `output` (default: a temporary folder) and upload it; returns its address."""
    from leftover.publish.export import export_policy

    with tempfile.TemporaryDirectory() as temporary:
        target = Path(output or Path(temporary) / "model")
        export_policy(folder, policy=policy, seed=seed, output=target, merge=merge, hub_id=hub_id)
        return upload(target, hub_id, private=private)


def upload(folder: Path, hub_id: str, *, private: bool | None = None) -> str:
    """Upload an exported folder in one commit; returns its address."""
    from huggingface_hub import HfApi

    api = HfApi()
    with _hub_errors(f"push to '{hub_id}'"):
        hub_id = api.create_repo(hub_id, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=hub_id,
            folder_path=folder,
            commit_message="Upload policy, tokenizer and model card",
            delete_patterns=_WEIGHTS,
        )
    log.info("hub: %s", commit.repo_url)
    return str(commit.repo_url)


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """Turn errors of the Hub and the network into UserError, without the token."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except LocalTokenNotFoundError:
        raise UserError(f"cannot {what} on the Hub without a token: {_LOGIN}") from None
    except OfflineModeIsEnabled:
        raise UserError(f"cannot {what} on the Hub: HF_HUB_OFFLINE is set; unset it, or do not push") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        remedy = f": {_LOGIN}" if status in (401, 403) else ""
        said = hide(" ".join(str(error.server_message or error).split())[:300], get_token())
        raise UserError(f"cannot {what} on the Hub (status {status}: {said}){remedy}") from None
    except (HTTPError, ConnectionError, TimeoutError) as error:
        said = hide(" ".join(str(error).split())[:300], get_token())
        raise UserError(f"cannot {what}: the Hub cannot be reached ({said}); try again later, or do not push") from None
