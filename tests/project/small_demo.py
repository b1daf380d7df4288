"""The demonstration with few steps, in the folder where it is called: what an installed package has to do."""

import sys
from pathlib import Path

import leftover
from leftover.demo.run import demo_recipe
from leftover.monitoring.terminal import set_up_logging

few = {"max_steps": 4, "per_device_train_batch_size": 8}
recipe = demo_recipe(
    Path("small-demo"),
    seed=0,
    reference={"train": few},
    value={"num_prompts": 40, "candidates": ["constant", "ridge"]},
    train=few,
    evaluate={"max_prompts": 16, "max_selection_prompts": 8, "max_new_tokens": 16},
)
set_up_logging()
leftover.run(recipe)
for name in ("report.html", "report.md", "policies/a_lol_seq/seed-0/README.md"):
    found = Path(recipe.output_dir) / name
    assert found.stat().st_size > 1000, f"{found} is missing or nearly empty"
assert Path(leftover.__file__).is_relative_to(sys.prefix), f"this is not the installed package: {leftover.__file__}"
print(f"Leftover {leftover.__version__} from {Path(leftover.__file__).parent} runs.")
