"""The sections of a recipe, with their defaults; `leftover.recipe.files` reads and writes them."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AllowInfNan, Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from leftover.recipe.data_section import DataSection
from leftover.recipe.engine import MAX_BATCH_TOKENS, EngineName, EngineSettings, VllmSection
from leftover.recipe.forms import BY_FORM, MAPPING, TEXT, Grid, OneOrMore, Section, Transform, Unfinished
from leftover.trust import check_code, code_is_closed


class LoraSection(Section):
    """A low-rank adapter (`peft.LoraConfig`) in place of full fine-tuning."""

    r: int = Field(16, gt=0)  # rank of the adapter
    alpha: float = Field(32, gt=0)  # the adapter is scaled by alpha / r
    dropout: float = Field(0.0, ge=0, lt=1)  # share of the adapter's inputs that training leaves out
    target_modules: OneOrMore = "all-linear"  # names of the layers that get one


class TokenizerSection(Section):
    """A tokenizer trained on the training rows (byte-level BPE), for random weights."""

    vocab_size: int = Field(4096, ge=260)  # 256 bytes, three special tokens, and what is learnt


def _is_saved(info: ValidationInfo) -> bool:
    """Whether the recipe is that of a run's folder, which an earlier version may have taken."""
    return bool(info.context and info.context.get("saved"))


class ModelSection(Section):
    _of_folder: bool = PrivateAttr(False)  # it is that of a run's folder

    path: str | None = None  # a folder or Hub id to start from; or a `config` in its place
    config: dict[str, Any] | None = None  # model_type and its settings, for random weights
    # Default: the one at `path`; {vocab_size: n} trains one.
    tokenizer: Annotated[Annotated[str, TEXT] | Annotated[TokenizerSection, MAPPING], BY_FORM] | None = None
    chat_template: str | None = None  # a template, a file, or "plain"; default: the tokenizer's own
    template_options: dict[str, Any] = {}  # keywords of the chat template, such as enable_thinking: false
    end_tokens: list[str] = []  # further tokens that end a completion, beside the end of sequence
    quantization: Literal["nf4"] | None = None  # 4-bit weights under an adapter (QLoRA); needs leftover[qlora]
    dtype: str = "float32"  # of the weights; with quantization, of those that stay as they are: embeddings, norms, head
    attn_implementation: str | None = None  # of attention, as from_pretrained takes it; default: transformers' choice
    trust_remote_code: bool = False  # run code that comes with the model
    lora: LoraSection | None = None

    @property
    def remote_code(self) -> bool:
        """Whether a model's own code may run. UserError if a run's folder asks for it and nobody allowed it."""
        if self.trust_remote_code:
            check_code("trust_remote_code", "model", of_folder=self._of_folder)
        return self.trust_remote_code and not code_is_closed()

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.config is None):
            raise ValueError("give exactly one of model.path and model.config")
        if self.config is not None and self.tokenizer is None:
            raise ValueError("model.config needs model.tokenizer as well: a folder, a Hub id, or {vocab_size: 4096}")
        if self.path is not None and isinstance(self.tokenizer, TokenizerSection):
            raise ValueError("model.tokenizer {vocab_size: ...} trains one for random weights: give model.config")
        if self.quantization and self.lora is None:
            raise ValueError("model.quantization trains an adapter on 4-bit weights: give model.path and model.lora")
        if self.path is None and (self.lora or self.quantization):
            raise ValueError("an adapter needs a model to stand on: give model.path, or leave out model.lora")
        return self


class LengthSection(Section):
    """What length explains of every component's scores is taken off, before `normalise` and weight."""

    # A straight line, or a curve that follows scores which level off, fitted on the training rows.
    debias: Literal["linear", "spline"]


class RewardSection(Section):
    # Each: {type: ..., weight: 1.0, name: ..., normalise: ..., settings of the type}; they are summed.
    functions: list[dict[str, Any]] = Field([{"type": "column"}], min_length=1)
    # Of the sum, as `normalise` of a function: none, sigmoid, quantile, minmax, standardise, or {scale: a, offset: b}
    # for a R + b; fitted on training rows and stored.
    transform: Transform | None = None
    missing: Literal["drop", "impute", "renormalise"] = "drop"  # of rows that a function has no score for
    length: LengthSection | None = None
    # The folder of a run with the same functions and judges: what these learnt there, normalisations and transform are
    # taken from it, so that the rewards of both runs are one scale; what it has scored is not scored again.
    fitted_in: str | None = None


class ReferenceSection(Section):
    # fit: `model` fine-tuned on the training rows; path: a fitted one; as_is: `model` unchanged.
    source: Literal["fit", "path", "as_is"] = "fit"
    path: str | None = None  # source: path - a folder or Hub id, also a PEFT adapter
    origin: str | None = None  # a further model that results give the KL to: of later rounds, the first reference
    train: dict[str, Any] = {}  # fields of LoLConfig

    @model_validator(mode="after")
    def _path_given(self) -> Self:
        if (self.source == "path") != (self.path is not None):
            raise ValueError("reference.path goes with reference.source: path, and only with it")
        return self


# A number of prompts, or `auto`: fewer with a pretrained model (`model.path`), whose completions are dear.
NumPrompts = Annotated[int, Field(gt=0)] | Literal["auto"]
_Bound = Annotated[float, AllowInfNan(True)]  # a reward may be bounded on one side


class ValueSection(Section):
    # auto: recorded if the reward has a recorded column, else reference_samples.
    targets: Literal["auto", "reference_samples", "recorded", "group_loo"] = "auto"
    # What V may be; the best on prompts left out of the fit is taken: the mean, a ridge regression on the reference's
    # hidden states, or an attention head on them.
    candidates: list[Literal["constant", "ridge", "head"]] = ["constant", "ridge", "head"]
    # reference_samples: how many training prompts are sampled for; auto: 2,000, with `model.path` 500.
    num_prompts: NumPrompts = "auto"
    samples_per_prompt: int = Field(1, gt=0)  # reference_samples: completions of each
    decoding: Literal["sample", "greedy"] = "sample"  # how they are drawn
    # reference_samples: V of a prompt that was sampled for is moved towards the mean of its own samples, by the weight
    # that explains most of the rows' rewards (prepare/value/own_samples.py). Ask for as many `num_prompts` as train.
    own_samples: bool = False
    folds: int = Field(5, gt=1)  # recorded and own_samples: cross-fitting by prompt
    head_epochs: int = Field(30, gt=0)  # of the head's training
    head_learning_rate: float = Field(1e-3, gt=0)  # and its learning rate
    bounds: tuple[_Bound, _Bound] | None = None  # declared bounds of the reward: the value is clipped to them

    @field_validator("candidates")
    @classmethod
    def _has_a_candidate(cls, candidates: list[str], info: ValidationInfo) -> list[str]:
        if not candidates and not _is_saved(info):
            raise ValueError("name at least one: constant, ridge, head")
        return candidates

    @field_validator("bounds")
    @classmethod
    def _bounds_are_in_order(
        cls, bounds: tuple[float, float] | None, info: ValidationInfo
    ) -> tuple[float, float] | None:
        if bounds is not None and not bounds[0] < bounds[1] and not _is_saved(info):
            raise ValueError("give the lower and the higher bound of the reward, as [0, 1] (.inf for none)")
        return bounds

    @property
    def num_samples(self) -> int:
        """Samples a prompt; greedy decoding has one completion a prompt, however many are asked for."""
        return self.samples_per_prompt if self.decoding == "sample" else 1


class EvaluateSection(Section):
    max_prompts: NumPrompts = "auto"  # unique held-out prompts, test split; auto: 500, with `model.path` 200
    # Prompts of the validation split that choose the checkpoint; auto: 200, with `model.path` 64.
    max_selection_prompts: NumPrompts = "auto"
    primary: Literal["sampled", "greedy"] = "sampled"  # whose completions the result table shows first
    # Which completions of the test prompts are written; default: the primary ones alone.
    decodings: list[Literal["sampled", "greedy"]] | None = Field(None, min_length=1)
    temperature: float = Field(1.0, gt=0)  # of sampled completions
    max_new_tokens: int | None = Field(None, gt=0)  # default: data.max_completion_tokens
    batch_size: int = Field(64, gt=0)  # completions that transformers writes at a time
    max_batch_tokens: int = Field(MAX_BATCH_TOKENS, gt=0)  # and their positions: rows times the longest they may become
    # What writes completions of tests, checkpoints and the reference; auto: vLLM with leftover[vllm] and a GPU.
    engine: EngineName = "auto"
    vllm: VllmSection = VllmSection()
    # score, drop or {penalty: x}: what a completion without an end counts, of every method: in tests, in the choice of
    # checkpoints, in value targets and quantiles from samples of the reference, and in PPO's updates.
    unfinished: Unfinished = "score"
    judges: list[dict[str, Any]] = []  # held-out rewards: reported, never trained on
    num_examples: int = Field(10, ge=0)  # completions side by side in the report
    base_perplexity: bool = False  # of the completions, under the pretrained model before the reference was fitted

    @field_validator("temperature")
    @classmethod
    def _temperature_gives_probabilities(cls, temperature: float, info: ValidationInfo) -> float:
        if not 0.01 <= temperature <= 100 and not _is_saved(info):
            raise ValueError("it must be from 0.01 to 100")
        return temperature

    @model_validator(mode="after")
    def _primary_is_written(self) -> Self:
        if self.decodings and self.primary not in self.decodings:
            raise ValueError(f"evaluate.primary is {self.primary}, which evaluate.decodings leaves out: name it there")
        return self


class CompareSection(Section):
    """What `leftover compare` tries before it trains a method with every seed."""

    # none: every method at its defaults; declared: each method's own small grid (commands/compare/methods.py); or
    # method -> trials, each a mapping of keys of LoLConfig ("objective_settings.beta") or {learning_rate_factor: 3}.
    grid: Grid = "none"


class RoundsSection(Section):
    """`leftover run` several times: the policy completes the training prompts, and the next round trains on that."""

    number: int = Field(gt=0)  # of rounds, the first included
    completions_per_prompt: int = Field(4, gt=0)  # that the policy writes for the next round
    keep: Literal["all", "latest"] = "all"  # of training rows: those of all rounds, or the last policy's alone
    unfinished: Literal["drop", "keep"] = "drop"  # completions that reach the length limit without an end
    # Beside the first policy, with as many generated completions: NLL on the best of every prompt's completions, in
    # rounds of its own; PPO. A policy of the recipe with this name has the settings.
    controls: list[Literal["best_of_n", "ppo"]] = []

    @model_validator(mode="after")
    def _controls_have_a_budget(self) -> Self:
        if self.controls and self.number == 1:
            raise ValueError("controls get as many completions as the rounds, and one round generates none: 2 or more")
        return self


# What no folder of a run may be called. `compare` names its trials NAME/trial-3 and NAME/beta-0.3, and runs of earlier
# versions have policies with further marks in their names: `leftover.recipe.names` refuses these in a recipe that is
# not saved yet.
NAME_RULE = "use at most 100 letters, digits, '_', '-' and '.' (of A to Z; neither a dot nor a dash first)"
_FOLDER_NAME = re.compile(r"(?!\.)[^/\\\x00-\x1f\x7f]{1,100}(/[A-Za-z0-9][A-Za-z0-9._,+-]{0,99})?")


def autocast_dtype(fields: dict[str, Any]) -> str | None:
    """The autocast dtype that training settings ask for."""
    return "bfloat16" if fields.get("bf16") else "float16" if fields.get("fp16") else None


class Recipe(Section):
    _where: str = PrivateAttr("recipe")  # its file, for messages

    name: str  # of the run, in tables and trackers
    output_dir: str  # the folder that holds everything the run makes
    seed: int = Field(0, ge=0)  # of splits, reference and value
    # Of training; every policy is trained once for each.
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1)
    model: ModelSection  # what reference and policies start from
    data: DataSection  # the rows, and how they are read
    reward: RewardSection = RewardSection()  # how good a completion is: R(x, y)
    reference: ReferenceSection = ReferenceSection()  # the frozen model that policies start from and are compared with
    value: ValueSection = ValueSection()  # what a prompt leads one to expect: V(x)
    # name -> fields of LoLConfig, or of PPOConfig with `objective: ppo`; the first policy is the one the report is
    # about, the others are its controls.
    policies: dict[str, dict[str, Any]] = {"a_lol_seq": {"objective": "a_lol_seq"}}
    train: dict[str, Any] = {}  # fields of LoLConfig that all policies share
    evaluate: EvaluateSection = EvaluateSection()  # held-out prompts, and how they are completed and judged
    compare: CompareSection = CompareSection()
    rounds: RoundsSection | None = None

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: list[int], info: ValidationInfo) -> list[int]:
        if len(set(seeds)) < len(seeds) and not _is_saved(info):
            raise ValueError("the same seed stands twice: one training is no second sample")
        return seeds

    @field_validator("policies")
    @classmethod
    def _check_names(cls, policies: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in policies:
            if name == "reference":
                raise ValueError(
                    "'reference' is the frozen reference's name in the results: give this policy another name"
                )
            if not _FOLDER_NAME.fullmatch(name):
                raise ValueError(f"{name[:100]!r} cannot name a policy, whose folder is called so: {NAME_RULE}")
        return policies

    @property
    def is_of_folder(self) -> bool:
        """Whether it is the recipe of a run's folder, which may be anybody's, or made of one."""
        return self.model._of_folder

    def marked(self, of_folder: bool) -> Self:
        """Itself, marked as the recipe of a run's folder or as the user's own."""
        self.model._of_folder = of_folder
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.model_dump() == other.model_dump()

    @property
    def where(self) -> str:
        """The file that it was read from, for messages."""
        return self._where

    @property
    def main_policy(self) -> str:
        return next(iter(self.policies))

    @property
    def training_sections(self) -> dict[str, dict[str, Any]]:
        """Key -> training settings, of every section that has some."""
        policies = {f"policies.{name}": fields for name, fields in self.policies.items()}
        return {"train": self.train, "reference.train": self.reference.train} | policies

    @property
    def decodings(self) -> tuple[str, ...]:
        """How the test prompts are completed, the primary way first."""
        primary = self.evaluate.primary
        return tuple(sorted(set(self.evaluate.decodings or [primary]), key=lambda decoding: decoding != primary))

    @property
    def test_prompts(self) -> int:
        return self._prompts(self.evaluate.max_prompts, 500, 200)

    @property
    def selection_prompts(self) -> int:
        return self._prompts(self.evaluate.max_selection_prompts, 200, 64)

    @property
    def value_settings(self) -> ValueSection:
        """The section `value` with its number of prompts."""
        return self.value.model_copy(update={"num_prompts": self._prompts(self.value.num_prompts, 2000, 500)})

    def _prompts(self, asked: int | str, usual: int, pretrained: int) -> int:
        """A number of prompts; `auto`: `usual`, or `pretrained` with a model whose completions are dear."""
        if isinstance(asked, int):
            return asked
        return usual if self.model.path is None else pretrained

    @property
    def max_new_tokens(self) -> int:
        """How long generated completions may be."""
        return self.evaluate.max_new_tokens or self.data.max_completion_tokens

    @property
    def training_defaults(self) -> dict[str, Any]:
        """Training settings that other sections decide, unless a training's own section does."""
        return {
            "max_prompt_length": self.data.max_prompt_tokens,
            "max_completion_length": self.max_new_tokens,
            "chat_template_kwargs": self.model.template_options,
            "end_tokens": self.model.end_tokens,
            "per_device_eval_batch_size": self.evaluate.batch_size,
            "eval_max_batch_tokens": self.evaluate.max_batch_tokens,
            "eval_engine": self.evaluate.engine,
            "eval_vllm": self.evaluate.vllm.model_dump(),
        }

    @property
    def engine(self) -> EngineSettings:
        return EngineSettings(self.evaluate.engine, self.evaluate.vllm)

    @property
    def generation(self) -> dict[str, Any]:
        """How completions are written: keywords of `leftover.models.generate.generate`."""
        section = self.evaluate
        return {
            "batch_size": section.batch_size,
            "max_batch_tokens": section.max_batch_tokens,
            "engine": self.engine,
        }

    @property
    def compute_dtype(self) -> str | None:
        """The autocast dtype of training, which the reference pass shares."""
        return autocast_dtype(self.train)

    @property
    def unfinished_key(self) -> dict[str, Any]:
        """What `evaluate.unfinished` adds to the key of every number that it decides; empty by default."""
        rule = self.evaluate.unfinished
        return {} if rule == "score" else {"unfinished": rule}

    @property
    def quantization_key(self) -> dict[str, Any]:
        """What quantised weights add to the key of every number that a model computes; empty without them."""
        kind = self.model.quantization
        return {"quantization": [kind, self.compute_dtype or "bfloat16"]} if kind else {}
