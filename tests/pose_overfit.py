"""Trains SimplePose on a handful of real persons until it knows them by heart.

    python tests/pose_overfit.py --data ../shared/data --workdir runs/pose_overfit

Persons: coco_keypoints_sample and the val images of tiny_coco, 58 together. Training and evaluation
see the same crops without random changes, so that OKS AP must exceed 90 %. Flags of
recipes/simple_pose.py may follow, such as --epochs 60 --decay-epochs ""; running it again
continues. tests/test_pose_overfit.py starts it.
"""
import argparse
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETS = (("coco_keypoints_sample", "test_coco.json"),
        ("tiny_coco/val2017", "../annotations/person_keypoints_val2017.json"))


def merged(data):
    """Returns the content of both annotation files; file names are relative to `data`."""
    result = {"images": [], "annotations": [], "categories": None}
    for folder, name in SETS:
        content = json.loads((Path(data) / folder / name).read_text())
        known = {image["id"] for image in result["images"]}
        result["images"] += [{**image, "file_name": f"{folder}/{image['file_name']}"}
                             for image in content["images"] if image["id"] not in known]
        result["annotations"] += [{**person, "id": len(result["annotations"]) + number}
                                  for number, person in enumerate(content["annotations"], 1)
                                  if person["image_id"] not in known]
        result["categories"] = content["categories"]
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DIR")
    parser.add_argument("--workdir", required=True, metavar="DIR")
    flags, more = parser.parse_known_args()
    sys.path.insert(0, str(ROOT))
    spec = importlib.util.spec_from_file_location("recipe", ROOT / "recipes/simple_pose.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    by_heart = replace(
        recipe.PAPER, network="resnest14", source="not published: a test by heart", batch=8,
        epochs=150, decay_epochs="110,140", scale=0.0, rotation=0.0, flip=False, remainder="fill",
        height=128, width=96, sigma=1.5, centre="exact", eval_flip="none", eval_every=10,
        expect_ap=None, expect_ap_no_flip=90.0)
    file = Path(flags.workdir) / "persons.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(merged(flags.data)))
    recipe.cli.main({"by_heart": by_heart}, recipe.Pose, [
        "--workdir", flags.workdir, "--train-annotations", str(file), "--train-images", flags.data,
        "--val-annotations", str(file), "--val-images", flags.data, "--log-every", "8", *more])


if __name__ == "__main__":
    main()
