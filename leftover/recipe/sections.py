"""The sections of a recipe, with their defaults; `leftover.recipe.files` reads and writes them."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class LoraSection(Section):
    """A low-rank adapter (`peft.LoraConfig`) in place of full fine-tuning."""

    r: int = Field(16, gt=0)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | list[str] = "all-linear"


class TokenizerSection(Section):
    """A tokenizer of the training rows' own (byte-level BPE), for random weights."""

    vocab_size: int = Field(4096, ge=260)  # 256 bytes, three special tokens, and what is learnt


class ModelSection(Section):
    # A folder or Hub id to start from; or a `config` (model_type and its settings) for random weights.
    path: str | None = None
    config: dict[str, Any] | None = None
    tokenizer: str | TokenizerSection | None = None  # default: the one at `path`; {vocab_size: n} trains one
    chat_template: str | None = None  # a template, a file, or "plain"; default: the tokenizer's own
    template_options: dict[str, Any] = {}  # keywords of the chat template, such as enable_thinking: false
    end_tokens: list[str] = []  # further tokens that end a completion, beside the end of sequence
    quantization: Literal["nf4"] | None = None  # 4-bit weights under an adapter (QLoRA); needs leftover[qlora]
    dtype: str = "float32"  # of the weights; with quantization, of those that stay as they are: embeddings, norms, head
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    lora: LoraSection | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "ModelSection":
        if (self.path is None) == (self.config is None):
            raise ValueError("give exactly one of model.path and model.config")
        if self.config is not None and self.tokenizer is None:
            raise ValueError("model.config needs model.tokenizer as well: a folder, a Hub id, or {vocab_size: 4096}")
        if self.path is not None and isinstance(self.tokenizer, TokenizerSection):
            raise ValueError("model.tokenizer {vocab_size: ...} trains one for random weights: give model.config")
        if self.quantization and self.lora is None:
            raise ValueError("model.quantization trains an adapter on frozen 4-bit weights: give model.lora as well")
        if self.quantization and self.path is None:
            raise ValueError("model.quantization takes pretrained weights: give model.path")
        return self


class ColumnsSection(Section):
    """Names of the user's columns; one that holds a brace is a template over them: "{title}: {body}"."""

    prompt: str = "prompt"
    completion: str = "completion"
    reward: str = "reward"  # a recorded score; rows may lack it
    split: str | None = "split"  # the user's own splits: train, validation, test; null: they are not looked at
    answer: str | None = None  # what a verifiable task should give, for the reward functions that compare with it
    tools: str = "tools"  # of a conversation: tools as the chat template takes them
    family: str = "family"  # rows of one story or conversation, kept on one side of every split
    source: str = "source"  # which set a row is of; default where several files or subsets are read: which of them


class TableSection(Section):
    """How CSV and TSV files are read, where their ending does not tell."""

    names: list[str] | None = Field(None, min_length=1)  # of the columns, for a file without a header line
    delimiter: str | None = Field(None, min_length=1, max_length=1)  # default: a comma, a tab in TSV
    quotes: bool | None = None  # whether double quotes enclose cells; default: in CSV yes, in TSV no


class DocumentsSection(Section):
    """How `format: documents` cuts plain text: sentences of prompt, then sentences of completion."""

    separator: str = "<|endoftext|>"
    prompt_sentences: int = Field(3, gt=0)
    completion_sentences: int = Field(1, gt=0)
    stride: int | None = Field(None, gt=0)  # sentences between two rows; default: they do not overlap


class CometSection(Section):
    """How `format: comet` writes a head, relation, tail triple of ATOMIC as text: templates over its columns."""

    # COMET-distill was taught "<head> {head} </head> <relation> {relation} </relation> [GEN]".
    prompt: str = "{head} {relation} [GEN]"
    completion: str = " {tail}"
    relations: list[str] | None = None  # the only ones to read; default: all
    # The column of the score. Default: data.columns.reward, or else p_valid_model (ATOMIC-10x), label or valid.
    score: str | None = None
    empty_tails: Literal["drop", "fault"] = "drop"
    none_tails: Literal["drop", "keep"] = "drop"  # the word "none", an annotator's sign of nothing to say


class RedditSection(Section):
    """How `format: reddit` makes rows of comments or posts that have a score."""

    # A reply to its parent comment; the body of a titled post; or the title after its first `split_words` words.
    completion: Literal["reply", "body", "title"] = "reply"
    split_words: int = Field(5, gt=0)
    # A template over the columns, {subreddit} and {title_start}. Default, in the order above: "{parent_text}\n",
    # "r/{subreddit}: {title}\n\n", "r/{subreddit}: {title_start}". DialoGPT takes "{parent_text}<|endoftext|>".
    prompt: str | None = None
    style: Literal["text", "chat"] = "text"  # chat: the prompt is a user's message
    # score: votes up less votes down; ratio: ups / (ups + downs); log_score: log(1 + score), odd about zero.
    reward: Literal["score", "ratio", "log_score"] = "score"
    deleted: Literal["drop", "keep"] = "drop"  # texts of which only the sign [deleted] or [removed] is left


class DialogueSection(Section):
    """How `format: dialogue` makes rows of conversations about a piece of knowledge: one a reply."""

    style: Literal["chat", "text"] = "chat"  # messages, the knowledge in a system turn; or turns joined to one text
    separator: str = "<|endoftext|>"  # text: after the knowledge and every turn
    knowledge: str = "Knowledge: {knowledge}"  # how the knowledge is put
    max_history_turns: int | None = Field(None, gt=0)  # default: all turns before the reply
    # FaithDial holds the edited reply and the one it was edited from; both: two rows of one prompt.
    response: Literal["edited", "original", "both"] = "edited"
    without_knowledge: Literal["drop", "keep"] = "drop"  # replies for which no knowledge was used
    without_history: Literal["drop", "keep"] = "drop"  # replies that open the conversation


Split = Literal["train", "validation", "test"]


class DataSection(Section):
    path: str | list[str]  # files, or ids of data sets on the Hub
    # What a file is (auto: told by its name), or a published layout, of which the file may be any but documents.
    format: Literal[
        "auto", "jsonl", "json", "parquet", "csv", "tsv", "hub", "documents", "hh", "comet", "reddit", "dialogue"
    ] = "auto"
    columns: ColumnsSection = ColumnsSection()
    labels: dict[str, float] = {}  # what the classes in the reward column are worth, as {good: 1, bad: 0}
    split_names: dict[str, Split] = {}  # further names in the split column, as {holdout: test}
    source_splits: dict[str, Split] = {}  # the split of every source, where files or subsets are splits
    table: TableSection = TableSection()
    documents: DocumentsSection = DocumentsSection()
    comet: CometSection = CometSection()
    reddit: RedditSection = RedditSection()
    dialogue: DialogueSection = DialogueSection()
    drop_listed: str | None = None  # format hh: the authors' JSON of bad rows, by file name
    hub_config: str | None = None  # of a data set on the Hub: its configuration,
    hub_data_dir: str | list[str] | None = None  # its subfolders (the subsets of Anthropic/hh-rlhf),
    hub_split: str | list[str] = "train"  # its splits
    max_prompt_tokens: int = Field(512, gt=0)  # longer prompts are cut on the left
    max_completion_tokens: int = Field(128, gt=0)
    long_completions: Literal["drop", "cut"] = "drop"
    on_bad_row: Literal["error", "skip"] = "error"
    rows: Literal["all", "chosen"] = "all"  # chosen: of a pair only that trains, but for methods that compare
    validation_size: float = Field(0.1, gt=0, lt=1)  # share of prompt families
    test_size: float = Field(0.1, gt=0, lt=1)
    max_rows: int | None = Field(None, gt=0)
    # The families that belong here, as a range of a hash from 0 to 1: rows of [0, 0.5] and [0.5, 1] share no family.
    part: tuple[float, float] = (0.0, 1.0)

    @field_validator("labels", "split_names", mode="before")
    @classmethod
    def _names_are_text(cls, value: Any) -> Any:
        return {str(name): what for name, what in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _goes_with_the_format(self) -> "DataSection":
        if self.drop_listed is not None and self.format != "hh":
            raise ValueError("data.drop_listed goes with data.format: hh, and only with it")
        if self.format in LAYOUTS and "{" in self.columns.prompt + self.columns.completion:
            raise ValueError(f"data.format: {self.format} makes prompt and completion itself: no template of columns")
        return self


# Settings of `data` that say how policies are trained on rows, and change none of them.
POLICY_KEYS = {
    "max_prompt_tokens",
    "max_completion_tokens",
    "long_completions",
    "rows",
    "validation_size",
    "test_size",
}

# Formats that make prompts and completions of their own.
LAYOUTS = ("documents", "hh", "comet", "reddit", "dialogue")


class RewardSection(Section):
    # Each: {type: ..., weight: 1.0, name: ..., normalise: ..., settings of the type}; they are summed.
    functions: list[dict[str, Any]] = [{"type": "column"}]
    # Of the sum, as `normalise` of a function: none, sigmoid, quantile, minmax, standardise, or {scale: a, offset: b}
    # for a R + b; fitted on training rows and stored.
    transform: Literal["sigmoid", "quantile", "minmax", "standardise"] | dict[str, float] | None = None
    missing: Literal["drop", "impute", "renormalise"] = "drop"  # of rows that a function has no score for


class ReferenceSection(Section):
    source: Literal["fit", "path", "as_is"] = "fit"
    path: str | None = None  # source: path - a folder or Hub id, also a PEFT adapter
    train: dict[str, Any] = {}  # fields of LoLConfig

    @model_validator(mode="after")
    def _path_given(self) -> "ReferenceSection":
        if (self.source == "path") != (self.path is not None):
            raise ValueError("reference.path goes with reference.source: path, and only with it")
        return self


class ValueSection(Section):
    # auto: recorded where the reward has a recorded column, else reference_samples.
    targets: Literal["auto", "reference_samples", "recorded", "group_loo"] = "auto"
    candidates: list[Literal["constant", "ridge", "head"]] = ["constant", "ridge", "head"]
    num_prompts: int = Field(2000, gt=0)  # reference_samples: how many training prompts are sampled for
    samples_per_prompt: int = Field(1, gt=0)
    decoding: Literal["sample", "greedy"] = "sample"
    folds: int = Field(5, gt=1)  # recorded: cross-fitting by prompt
    head_epochs: int = Field(30, gt=0)
    head_learning_rate: float = Field(1e-3, gt=0)
    bounds: tuple[float, float] | None = None  # declared bounds of the reward: the value is clipped to them

    @property
    def num_samples(self) -> int:
        """Samples a prompt; greedy decoding has one completion a prompt, however many are asked for."""
        return self.samples_per_prompt if self.decoding == "sample" else 1


class EvaluateSection(Section):
    max_prompts: int = Field(500, gt=0)  # unique held-out prompts, test split
    max_selection_prompts: int = Field(200, gt=0)  # prompts of the validation split that choose the checkpoint
    primary: Literal["sampled", "greedy"] = "sampled"  # whose completions the result table shows first
    temperature: float = Field(1.0, gt=0)
    max_new_tokens: int | None = Field(None, gt=0)  # default: data.max_completion_tokens
    batch_size: int = Field(64, gt=0)
    judges: list[dict[str, Any]] = []  # held-out rewards: reported, never trained on
    num_examples: int = Field(10, ge=0)  # completions side by side in the report


class CompareSection(Section):
    """What `leftover compare` tries before it trains a method with every seed."""

    # none: every method at its defaults; declared: each method's own small grid (see leftover/compare/methods.py); or
    # method -> trials, each a mapping of keys of LoLConfig ("objective_settings.beta") or {learning_rate_factor: 3}.
    grid: Literal["none", "declared"] | dict[str, list[dict[str, Any]]] = "none"


def autocast_dtype(fields: dict[str, Any]) -> str | None:
    """The autocast dtype that training settings ask for."""
    return "bfloat16" if fields.get("bf16") else "float16" if fields.get("fp16") else None


class Recipe(Section):
    name: str
    output_dir: str
    seed: int = 0  # splits, reference, value
    seeds: list[int] = Field([0], min_length=1)  # of training; every policy is trained once for each
    model: ModelSection
    data: DataSection
    reward: RewardSection = RewardSection()
    reference: ReferenceSection = ReferenceSection()
    value: ValueSection = ValueSection()
    # name -> fields of LoLConfig, or of PPOConfig with `objective: ppo`; the first policy is the one the report is
    # about, the others are its controls.
    policies: dict[str, dict[str, Any]] = {"a_lol_seq": {"objective": "a_lol_seq"}}
    train: dict[str, Any] = {}  # fields of LoLConfig that all policies share
    evaluate: EvaluateSection = EvaluateSection()
    compare: CompareSection = CompareSection()

    @property
    def main_policy(self) -> str:
        return next(iter(self.policies))

    @property
    def training_sections(self) -> dict[str, dict[str, Any]]:
        """Key -> training settings, of every section that has some."""
        policies = {f"policies.{name}": fields for name, fields in self.policies.items()}
        return {"train": self.train, "reference.train": self.reference.train} | policies

    @property
    def max_new_tokens(self) -> int:
        """How long generated completions may be."""
        return self.evaluate.max_new_tokens or self.data.max_completion_tokens

    @property
    def compute_dtype(self) -> str | None:
        """The autocast dtype of training, which the reference pass shares."""
        return autocast_dtype(self.train)

    @property
    def quantization_key(self) -> dict[str, Any]:
        """What quantised weights add to the key of every number that a model computes; empty without them."""
        kind = self.model.quantization
        return {"quantization": [kind, self.compute_dtype or "bfloat16"]} if kind else {}
