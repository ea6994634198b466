"""Renders docs/model_cards.md: what the published weights are for, from the table of the zoo."""
from gluon_resnest import zoo

PAGE = "model_cards.md"

HEAD = """# Model cards

Rendered by `python tools/render_model_zoo.py` from the tables of the zoo; a test compares. These
are cards of **weights that others trained and published**; this project has trained none of them,
and their numbers are the published ones. What its own short runs gave is on [the page of
results](reproduce.md).

## Classifiers

- **Intended use**: classification of photographs into the 1000 classes of ImageNet-1k; features
  for detection, segmentation, pose and [fine-tuning](finetuning.md).
- **Input**: RGB, channel means 0.485, 0.456, 0.406 and deviations 0.229, 0.224, 0.225 of values
  in [0, 1], at the crop in the table.
- **Training data**: ImageNet-1k (ILSVRC 2012), 1.28 million images, by the authors' recipe
  (paper, section 5; `recipes/imagenet.py`): AutoAugment, mixup, label smoothing, DropBlock. The
  images carry rights of their own: ImageNet's terms are for research and teaching.
- **Licence**: Apache-2.0, as the sources state of their repositories, which publish the weights.
- **Metrics**: top-1 and top-5 on the 50,000 validation images, one crop, by the protocol in the
  table.
- **Caveats**: another crop costs accuracy: at 224 px, 101, 200 and 269 layers lose 0.5, 1.4 and
  1.8 points (mmpretrain's old zoo); the network names one of its classes for any image; accuracy
  on other photographs, groups of people or regions was not published. The radix changes the
  speed, though hardly the multiply-accumulates (paper, Table 2).
"""


def render(segmentation):
    """Returns the text of the page.

    Args:
      segmentation: SegmentationRecipes; that of a network says which numbers were published of it.
    """
    rows = ["| weights | M parameters | GMACs at 224 | crop | protocol | top-1 | top-5 | source | "
            "sha1 |", "|---|---|---|---|---|---|---|---|---|"]
    for name, entry in zoo.VARIANTS.items():
        if entry.weights:
            given = entry.weights
            rows.append("| " + " | ".join([
                f"`{name}`", f"{entry.params / 1e6:.2f}", f"{entry.gmacs:.2f}", str(given.crop_px),
                given.protocol, f"{given.top1:.2f}", f"{given.top5:.2f}" if given.top5 else "",
                given.source, f"`{given.sha1[0][:8]}`"]) + " |")
    recipes = {recipe.network: recipe for recipe in reversed(list(segmentation))}   # the first one
    segmenters = [f"| `{name}` | {recipes[name].expect_miou:.2f} | "
                  f"{recipes[name].expect_pixacc:.2f} | {recipes[name].crop_px} | "
                  f"`{sha1[0][:8]}` |"
                  for name, sha1 in zoo.SEGMENTERS.items() if sha1]
    return "\n".join([HEAD, *rows, """
## Segmentation networks

- **Intended use**: a class for each pixel of indoor and outdoor scenes (ADE20K, 150 classes) or
  of streets (Cityscapes, 19 classes).
- **Training data**: ADE20K's 20,210 or Cityscapes' 2,975 finely labelled images, from ImageNet
  weights (`recipes/deeplabv3.py`, which names the sources of the numbers).
- **Licence**: Apache-2.0, as GluonCV, which publishes them, states of itself.
- **Metrics**: mean IoU and pixel accuracy in per cent on the validation images, with windows of
  the crop in the table.
- **Caveats**: published numbers are of six scales and mirrored images together; one scale gives
  less. Not made for decisions about traffic or persons.

| weights | mIoU | pixel accuracy | crop | sha1 |
|---|---|---|---|---|""", *segmenters, """
## Everything else

Detectors and pose networks with ResNeSt have no MXNet weights but GluonCV's Faster R-CNN; those
of other systems are converted ([classifiers](migration.md#weight-files), [detection](detection.md),
[pose](pose.md)) and are for what their authors say.
"""])
