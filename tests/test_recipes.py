"""Every recipe end to end with --smoke, and the page that lists them."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(path for path in (ROOT / "recipes").glob("*.py") if path.stem != "__init__")
FLAGS = {"imagenet": ["--model", "resnest14"], "cifar10": ["--model", "resnet14_0s1x64d"],
         "finetune": ["--model", "resnest14_2s1x64d"],
         "deeplabv3": ["--model", "shapes"], "panoptic_fpn": ["--model", "shapes"],
         **dict.fromkeys(["faster_rcnn", "mask_rcnn", "cascade_rcnn"], ["--model", "tiny_coco"])}


def run(*words, **environ):
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True,
                          timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1", **environ})


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_smoke(recipe, tmp_path):
    """Two steps on synthetic data, evaluation, checkpoint, new start from it, result."""
    done = run(recipe, "--smoke", "--workdir", tmp_path, *FLAGS.get(recipe.stem, []))
    assert done.returncode == 0, done.stderr
    assert "step 1 of 2" in done.stderr and "step 2 of 2" in done.stderr
    assert (tmp_path / "result.json").exists() and (tmp_path / "curves.png").exists()


def test_an_installed_recipe_does_the_same(tmp_path):
    done = run("-m", "gluon_resnest.recipes.imagenet", "--model", "resnset50")
    assert done.returncode == 2 and "'resnest50'" in done.stderr, done.stderr


def test_the_page_of_recipes_is_up_to_date():
    done = run(ROOT / "tools/render_results.py", "--check")
    assert done.returncode == 0, done.stderr
