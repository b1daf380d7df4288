"""The demonstration with few steps, in the folder where it is called: what an installed package has to do."""

from pathlib import Path

import leftover
from leftover.demo.run import demo_recipe

few = {"max_steps": 4, "per_device_train_batch_size": 8}
recipe = demo_recipe(
    Path("small-demo"),
    seed=0,
    reference={"train": few},
    value={"num_prompts": 40, "candidates": ["constant", "ridge"]},
    train=few,
    evaluate={"max_prompts": 16, "max_selection_prompts": 8, "max_new_tokens": 16},
)
leftover.run(recipe)
for name in ("report.html", "report.md", "policies/a_lol_seq/README.md"):
    found = Path(recipe.output_dir) / name
    assert found.stat().st_size > 1000, f"{found} is missing or nearly empty"
print(f"Leftover {leftover.__version__} from {Path(leftover.__file__).parent} runs.")
