"""The rating page and what people's ratings say: blind, escaped, shuffled, and read back from our side."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from leftover.commands.judge.ask import VerdictStore
from leftover.commands.judge.endpoint import JudgeSettings
from leftover.commands.judge.human import import_ratings, write_page
from leftover.commands.judge.pairs import Comparison, Pair
from leftover.commands.judge.questions import Criterion, make_questions
from leftover.commands.judge.summary import cohen_kappa, krippendorff_alpha
from leftover.errors import UserError
from leftover.store.sealed import read_sealed
from tests.commands.judge.judge_service import make_pairs

GOOD, KIND = Criterion("good", "Which is good?"), Criterion("kind", "Which is kind?")
NASTY = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>",
    "<!-- & &amp; \u202eabc\u2028 {data} ${x} `y` \\ ' \" --></style>" + "x" * 100_000,
)


def compare(pairs) -> Comparison:
    return Comparison("a_lol_seq-seed-0", "data", "sampled", tuple(pairs), 4.0, 0.25)


def make_page(folder, pairs, criteria=(GOOD,)):
    """Write a page and read it: its text, its data, and which side is ours."""
    path = folder / "page.html"
    write_page(folder, compare(pairs), criteria, path)
    text = path.read_text(encoding="utf-8")
    data = json.loads(parse(text).scripts["application/json"])
    key = json.loads((folder / "judge" / "human" / f"{data['page']}.json").read_text(encoding="utf-8"))
    return text, data, key


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.scripts: dict[str, str] = {}
        self.styles: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.inside = None

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = (tag, dict(attributes).get("type", "")) if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, text):
        if self.inside and self.inside[0] == "script":
            assert self.inside[1] not in self.scripts, "a script more than the page has"
            self.scripts[self.inside[1]] = text
        elif self.inside:
            self.styles.append(text)


def parse(text: str) -> Page:
    page = Page()
    page.feed(text)
    page.close()
    return page


MANY = make_pairs(*[(f"mine {i}", f"yours {i}") for i in range(30)])


# The page


def test_texts_of_any_kind_are_shown_as_they_are_and_stay_text(tmp_path):
    pairs = [Pair("id", NASTY[1], NASTY[0], NASTY[1], 0, "", 0)]
    text, data, _ = make_page(tmp_path, pairs, [Criterion("x", NASTY[0])])
    item = data["items"][0]
    assert {item["first"], item["second"]} == set(NASTY)
    assert item["prompt"] == NASTY[1] and item["question"] == NASTY[0]
    plain = parse(make_page(tmp_path, MANY)[0])
    assert [t for t, _ in parse(text).tags] == [t for t, _ in plain.tags], "no element comes from a text"
    assert text.count("<script") == 2 and "onerror=" in text


def test_the_page_needs_no_network_and_lets_no_script_run_but_its_own(tmp_path):
    page = parse(make_page(tmp_path, MANY)[0])
    assert not [a for _, attributes in page.tags for a in attributes if a in ("src", "href") or a.startswith("on")]
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")

    def sha(source: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"

    assert "default-src 'none'" in policy
    assert f"script-src {sha(page.scripts[''])};" in policy
    assert [f"style-src {sha(style)};" in policy for style in page.styles] == [True]


def test_the_page_does_not_tell_whose_completion_is_whose(tmp_path):
    text, data, key = make_page(tmp_path, MANY)
    assert set(data) == {"page", "items"}
    assert set(data["items"][0]) == {"id", "question", "prompt", "first", "second"}
    assert not [word for word in ("a_lol", "seed", "reference", "sampled") if word in text]
    ours_first = [item["first"].startswith("mine") for item in data["items"]]
    assert ours_first == [key["items"][item["id"]]["ours_first"] for item in data["items"]]
    assert 5 < sum(ours_first) < 25, "sides are by chance"
    assert [item["prompt"] for item in data["items"]] != [pair.prompt for pair in MANY], "and so is the order"
    assert sorted(item["prompt"] for item in data["items"]) == sorted(pair.prompt for pair in MANY)


def test_a_pairs_criteria_follow_each_other_with_the_same_sides(tmp_path):
    items = make_page(tmp_path, MANY, [GOOD, KIND])[1]["items"]
    for good, kind in zip(items[::2], items[1::2], strict=True):
        assert (good["question"], kind["question"]) == (GOOD.text, KIND.text)
        assert {**good, "id": 0, "question": 0} == {**kind, "id": 0, "question": 0}


def test_the_same_pairs_make_the_same_page_and_others_another(tmp_path):
    first, again = make_page(tmp_path, MANY), make_page(tmp_path, MANY)
    assert first[0] == again[0]
    assert make_page(tmp_path, MANY[:-1])[1]["page"] != first[1]["page"]


def test_identical_completions_are_not_shown(tmp_path):
    assert len(make_page(tmp_path, make_pairs(("a", "b"), ("s", "s")))[1]["items"]) == 1
    with pytest.raises(UserError, match="nothing to rate"):
        make_page(tmp_path, make_pairs(("s", "s")))


# The page's own script, in Node with the few parts of a browser that it uses

_BROWSER = """
const fs = require("fs"), parts = {}, handlers = {}, stored = JSON.parse(process.argv[2]), log = [];
function element(id) {
  return {id, textContent: "", value: "", attributes: {}, listeners: {}, disabled: false,
    setAttribute(name, value) { this.attributes[name] = String(value); },
    addEventListener(name, f) { this.listeners[name] = f; },
    focus() { log.push("focus " + id); }, click() { log.push("download " + this.download); }};
}
globalThis.document = {
  getElementById: id => parts[id] ??= element(id),
  createElement: () => element("link"),
  addEventListener: (name, f) => { handlers[name] = f; },
};
globalThis.localStorage = stored === null
  ? {getItem() { throw new Error("denied"); }, setItem() { throw new Error("denied"); }}
  : {getItem: k => stored[k] ?? null, setItem(k, v) { stored[k] = v; }};
globalThis.URL = {createObjectURL: blob => { log.push(blob.content); return "blob:x"; }, revokeObjectURL() {}};
globalThis.Blob = class { constructor(content) { this.content = content[0]; } };
globalThis.setTimeout = () => {};
let sure = false;
globalThis.confirm = () => sure;
const page = JSON.parse(fs.readFileSync(0, "utf8"));
parts.data = element("data");
parts.data.textContent = page.data;
(0, eval)(page.script);
for (const step of JSON.parse(process.argv[1])) {
  if (step.startsWith("name ")) { parts.rater.value = step.slice(5); parts.rater.listeners.input(); }
  else if (step === "sure") sure = true;
  else if (step.startsWith("click ")) parts[step.slice(6)].listeners.click();
  else if (step.startsWith("type ")) handlers.keydown({key: step.slice(5), target: parts.rater});
  else if (step.startsWith("ctrl ")) handlers.keydown({key: step.slice(5), target: null, ctrlKey: true});
  else handlers.keydown({key: step, target: null});
}
delete parts.data;
const shown = Object.fromEntries(Object.entries(parts).map(([id, part]) => [id, part.textContent]));
const pressed = [1, 2, 3].filter(value => parts["rate" + value].attributes["aria-pressed"] === "true");
console.log(JSON.stringify({shown, stored, log, pressed}));
"""


@pytest.fixture
def browse(tmp_path):
    """`browse(steps, stored)`: keys, clicks and a name, on a page of three questions."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not there")
    page = parse(make_page(tmp_path, make_pairs(("a", "b"), ("c", "d"), ("e", "f")))[0])
    given = json.dumps({"data": page.scripts["application/json"], "script": page.scripts[""]})
    items = json.loads(page.scripts["application/json"])

    def act(steps, stored=()):
        saved = None if stored is None else dict(stored)
        command = [node, "-e", _BROWSER, "--", json.dumps(steps), json.dumps(saved)]
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
        return json.loads(done.stdout) | items

    return act


def test_keys_rate_and_move_and_what_is_typed_elsewhere_does_not(browse):
    seen = browse(["type 1", "ctrl 3", "9", "3", "1"])
    assert seen["shown"]["place"] == "Question 3 of 3, 2 answered"
    assert seen["shown"]["first"] == seen["items"][2]["first"]
    assert json.loads(seen["stored"][f"leftover-rating-{seen['page']}"])["ratings"] == {"1": 3, "2": 1}
    back = browse(["3", "1", "ArrowLeft"])
    assert back["pressed"] == [1] and back["shown"]["place"].startswith("Question 2")
    assert "export" in browse(["2", "2", "2"])["shown"]["status"]


def test_ratings_are_saved_taken_up_and_exported_with_a_name(browse):
    first = browse(["name Ada L.", "2", "click rate1"])
    later = browse(["click export"], first["stored"])
    assert later["shown"]["place"] == "Question 3 of 3, 2 answered", "it opens where it was left"
    content, name = later["log"]
    assert json.loads(content) == {"page": later["page"], "rater": "Ada L.", "ratings": {"1": 2, "2": 1}}
    assert name == f"download ratings-{later['page']}-Ada-L-.json"


def test_starting_over_forgets_everything_once_it_is_confirmed(browse):
    first = browse(["name Ada", "2", "2", "click restart"])
    assert first["shown"]["place"] == "Question 3 of 3, 2 answered"
    again = browse(["sure", "click restart"], first["stored"])
    assert again["shown"]["place"] == "Question 1 of 3, 0 answered"
    assert json.loads(*again["stored"].values()) == {"rater": "", "ratings": {}}


def test_without_a_name_or_a_place_to_save_the_page_says_so(browse):
    assert browse(["1", "click export"])["log"] == ["focus rater"]
    assert "does not save" in browse(["1"], None)["shown"]["status"]


# Ratings


def rate(folder, data, key, rater, values, number=None):
    """An export in which pair i is rated `values[i]`: 1 for ours, 0 for theirs, 0.5 equal, None left out."""
    ratings = {}
    for item in data["items"]:
        value = values[key["items"][item["id"]]["pair"]]
        if value is not None:
            ours_first = key["items"][item["id"]]["ours_first"]
            ratings[item["id"]] = 2 if value == 0.5 else 1 if (value == 1) == ours_first else 3
    path = folder / f"{rater}{number or ''}.json"
    path.write_text(json.dumps({"page": data["page"], "rater": rater, "ratings": ratings}))
    return path


def test_ratings_are_read_back_from_our_side(tmp_path):
    pairs = [
        *make_pairs(*[(f"a{i}", f"b{i}") for i in range(4)], sources=("x", "y")),
        Pair("s", "s", "s", "s", 9, "x", 0),
    ]
    _, data, key = make_page(tmp_path, pairs)
    files = [
        rate(tmp_path, data, key, "ada", [1, 1, 0, 0.5]),
        rate(tmp_path, data, key, "bo", [1, 0, 0, None]),
    ]
    results, path = import_ratings(tmp_path, files)
    found = results["criteria"]["good"]
    # By prompt: 1, (1 + 0)/2, 0, .5, and the identical one ties.
    assert found["prompts"] == 5 and found["win_rate"]["mean"] == (1 + 0.5 + 0 + 0.5 + 0.5) / 5
    assert found["win"]["mean"] == (1 + 0.5) / 5 and found["tie"]["mean"] == (1 + 1) / 5
    assert found["by_source"]["y"]["win_rate"]["mean"] == (0.5 + 0.5) / 2
    assert found["win_rate_by_rater"] == {"ada": 2.5 / 4, "bo": 1 / 3} and found["ratings"] == 7
    kappa = found["cohen_kappa"]
    # Equal on two of three; by chance: win 2/3 * 1/3, loss 1/3 * 2/3, together 4/9.
    assert kappa == [
        {"raters": ["ada", "bo"], "kappa": pytest.approx((2 / 3 - 4 / 9) / (5 / 9)), "equal": 2 / 3, "items": 3}
    ]
    assert json.loads(path.read_text())["comparison"] == "a_lol_seq-seed-0 against data, sampled"


def test_who_prefers_ours_on_either_side_prefers_ours(tmp_path):
    _, data, key = make_page(tmp_path, MANY)
    assert len({item["ours_first"] for item in key["items"].values()}) == 2
    found = import_ratings(tmp_path, [rate(tmp_path, data, key, "ada", [1] * 30)])[0]["criteria"]["good"]
    assert found["win"]["mean"] == 1 and found["prompts"] == 30


def test_a_judge_is_compared_with_each_person_and_is_no_person(tmp_path):
    pairs = make_pairs(*[(f"a{i}", f"b{i}") for i in range(4)])
    _, data, key = make_page(tmp_path, pairs)
    settings = JudgeSettings(model="stub", base_url="http://host/v1")
    verdicts = {0: 1, 1: 1, 2: 0, 3: 0}
    with VerdictStore(tmp_path / "judge") as store:
        for q in make_questions(pairs, [GOOD], settings):
            ours = verdicts[int(q.pair.prompt_id[3:])] == 1
            store.append({"key": q.key, "verdict": "A" if ours == q.ours_first else "B"})
    files = [rate(tmp_path, data, key, "ada", [1, 0, 0, 1])]
    found = import_ratings(tmp_path, files, settings)[0]["criteria"]["good"]
    # Equal on two of four, as by chance.
    assert found["cohen_kappa"] == [{"raters": ["ada", "stub"], "kappa": 0, "equal": 0.5, "items": 4}]
    assert found["win_rate_by_rater"] == {"ada": 0.5} and found["krippendorff_alpha"] is None


def test_alpha_over_people_who_left_items_out():
    # Pairs of ratings: (1, 1), (0, 0), (1, 0), (0.5, 0.5); the last item has one rating and counts for nothing.
    raters = [{0: 1, 1: 0, 2: 1, 3: 0.5, 4: 1}, {0: 1, 1: 0, 2: 0, 3: 0.5}]
    # Observed disagreement: 2 of 8. Expected: of three 1s, three 0s and two halves all but 6 + 6 + 2 of 8 * 7 pairs.
    assert krippendorff_alpha(raters) == pytest.approx(1 - (2 / 8) / (42 / 56))


def test_agreement_that_chance_would_give_too_is_none():
    assert krippendorff_alpha([{0: 1, 1: 1}, {0: 1, 1: 1}]) is None
    assert krippendorff_alpha([{0: 1}, {1: 0}]) is None and krippendorff_alpha([]) is None
    assert cohen_kappa({0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.5}) == {"kappa": None, "equal": 1, "items": 2}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("nonsense", "Invalid JSON"),
        ("[1]", "not as the rating page exports it"),
        ('{"ratings": {"1": 1}, "rater": "ada"}', "page: Field required"),
        ('{"page": "PAGE", "ratings": {"1": 1}, "rater": ""}', "rater: "),
        ('{"page": "PAGE", "ratings": {"1": 4}, "rater": "ada"}', "(got 4)"),
        ('{"page": "PAGE", "ratings": {"1": true}, "rater": "ada"}', "(got True)"),
        ('{"page": "PAGE", "ratings": {"1": [1]}, "rater": "ada"}', "ratings.1: "),
        ('{"page": "PAGE", "ratings": {"77": 1}, "rater": "ada"}', "question '77' is not on the page"),
        ('{"page": "PAGE", "ratings": {}, "rater": "ada"}', "ratings: Dictionary should have at least 1 item"),
        ('{"page": "../../x", "ratings": {"1": 1}, "rater": "ada"}', "wrote no rating page"),
        (None, "no file at"),
    ],
)
def test_a_faulty_export_is_refused_with_its_file(content, expected, tmp_path):
    _, data, _ = make_page(tmp_path, MANY)
    path = tmp_path / "ratings.json"
    if content is not None:
        path.write_text(content.replace("PAGE", data["page"]))
    with pytest.raises(UserError, match=re.escape(str(path))) as error:
        import_ratings(tmp_path, [path])
    assert expected in str(error.value)


def test_a_rater_twice_or_two_pages_at_once_are_refused(tmp_path):
    _, data, key = make_page(tmp_path, MANY)
    twice = [rate(tmp_path, data, key, "ada", [1] * 30, number) for number in (1, 2)]
    with pytest.raises(UserError, match=r"'ada'.*once"):
        import_ratings(tmp_path, twice)
    _, other, other_key = make_page(tmp_path, MANY[:5])
    mixed = [twice[0], rate(tmp_path, other, other_key, "bo", [1] * 5)]
    with pytest.raises(UserError, match=r"2 rating pages.*one page at a time"):
        import_ratings(tmp_path, mixed)


# Damage to what the run keeps


def export(folder, page, ratings):
    path = folder / "ratings.json"
    path.write_text(json.dumps({"page": page, "rater": "a", "ratings": ratings}))
    return path


def inverted(key):
    for item in key["items"].values():
        item["ours_first"] = not item["ours_first"]
    return key


KEYS = {
    "a list": lambda key: [],
    "empty": lambda key: {},
    "null": lambda key: None,
    "a number": lambda key: 3,
    "a list of questions": lambda key: key | {"items": []},
    "a number of pairs": lambda key: key | {"pairs": 3},
    "no pair": lambda key: key | {"pairs": []},
    "pairs of other keys": lambda key: key | {"pairs": [{"a": 1}]},
    "a list of criteria": lambda key: key | {"criteria": []},
    "questions without keys": lambda key: key | {"items": {"1": {}}},
    "a question of no pair": lambda key: key | {"items": {"1": key["items"]["1"] | {"pair": 999}}},
    "sides that were changed": inverted,
}


@pytest.mark.parametrize("copied", [True, False], ids=["with its copy", "without"])
@pytest.mark.parametrize("damage", KEYS.values(), ids=KEYS)
def test_a_damaged_key_of_the_page_is_read_from_its_copy_or_named(damage, copied, tmp_path, caplog):
    _, data, key = make_page(tmp_path, MANY)
    ratings = export(tmp_path, data["page"], {"1": 1})
    whole, _ = import_ratings(tmp_path, [ratings])
    path = tmp_path / "judge/human" / f"{data['page']}.json"
    path.write_text(json.dumps(damage(key)))
    if copied:
        assert import_ratings(tmp_path, [ratings])[0] == whole
        assert f"{path} is damaged" in caplog.text
        return
    path.with_suffix(".copy.json").write_text("{")
    with pytest.raises(UserError, match=rf"^{path}, the key of the rating page, is damaged .+ again with --human"):
        import_ratings(tmp_path, [ratings])
    write_page(tmp_path, compare(MANY), [GOOD], tmp_path / "page.html")
    assert import_ratings(tmp_path, [ratings])[0] == whole


@pytest.mark.parametrize("pair", [0, 999])
def test_a_key_of_an_earlier_version_is_believed_where_it_is_whole(pair, tmp_path):
    _, data, key = make_page(tmp_path, MANY)
    path = tmp_path / "judge/human" / f"{data['page']}.json"
    path.with_suffix(".copy.json").unlink()
    del key["checksum"]
    path.write_text(json.dumps(key | {"items": {"1": key["items"]["1"] | {"pair": pair}}}))
    ratings = export(tmp_path, data["page"], {"1": 1})
    if not pair:
        assert import_ratings(tmp_path, [ratings])[0]["raters"] == ["a"]
        return
    with pytest.raises(UserError, match=rf"^{path}, the key of the rating page, is damaged \(.*of no pair"):
        import_ratings(tmp_path, [ratings])


def test_results_that_were_changed_are_told(tmp_path):
    _, data, _ = make_page(tmp_path, MANY)
    _, results = import_ratings(tmp_path, [export(tmp_path, data["page"], {"1": 1})])
    results.write_text(results.read_text().replace('"raters"', '"painters"'))
    with pytest.raises(UserError, match="its checksum is of another content"):
        read_sealed(results)


def test_a_verdict_that_is_nested_too_deeply_is_named(tmp_path):
    (tmp_path / "verdicts.jsonl").write_text('{"a":' * 50_000 + "1" + "}" * 50_000 + "\n")
    with pytest.raises(UserError, match=r"verdicts\.jsonl, line 1: not a verdict .+ remove the line"):
        VerdictStore(tmp_path)
