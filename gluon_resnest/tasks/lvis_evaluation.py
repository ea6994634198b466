"""LVIS's AP, and that of rare, common and frequent classes, by the official package `lvis`."""
import logging
import warnings

from gluon_resnest.errors import MissingExtra, UserError
from gluon_resnest.tasks.coco_files import completed
from gluon_resnest.tasks.detection_evaluation import KINDS, check_images, with_masks

MAX_DETECTIONS = 300        # of an image that count

# The package's name -> ours.
_NAMES = {"AP": "ap", "AP50": "ap50", "AP75": "ap75", "APs": "ap_small", "APm": "ap_medium",
          "APl": "ap_large", "APr": "ap_rare", "APc": "ap_common", "APf": "ap_frequent",
          f"AR@{MAX_DETECTIONS}": f"ar{MAX_DETECTIONS}", f"ARs@{MAX_DETECTIONS}": "ar_small",
          f"ARm@{MAX_DETECTIONS}": "ar_medium", f"ARl@{MAX_DETECTIONS}": "ar_large"}
_ALL_AREAS = 0
_NO_CLASS = -1


def lvis_ap(ground_truth, results, kind):
    """Computes LVIS's metrics of boxes or masks; see `detection_evaluation.coco_ap`.

    Detections of classes that an image does not speak of are left out; those of classes of which
    only some objects are annotated there are never wrong.

    Args:
      ground_truth: content of a lvis_v1_*.json.
      results: list of dicts in COCO's result format, maybe empty; not changed.
      kind: "bbox" or "segm".

    Returns:
      As `coco_ap`, also "ap_rare", "ap_common", "ap_frequent"; a metric about which the annotated
      objects say nothing is left out.

    Raises:
      UserError: if no object is annotated, if a mask is missing or broken, or the results are of
        other images.
    """
    check_images(ground_truth, results)
    judging = judge(with_masks(ground_truth, kind), results, kind)
    metrics = {KINDS[kind] + _NAMES[name]: 100 * float(value)
               for name, value in judging.get_results().items() if value >= 0}
    if KINDS[kind] + "ap" not in metrics:
        raise UserError("the annotations have no object, so there is nothing to compare with; give "
                        "a lvis_v1_*.json with objects")
    names = {each["id"]: each["name"] for each in ground_truth["categories"]}
    per_class = {}
    for column, number in enumerate(judging.params.cat_ids):
        precision = judging.eval["precision"][:, :, column, _ALL_AREAS]
        if (precision > -1).any():
            per_class[names[number]] = 100 * float(precision[precision > -1].mean())
    return metrics, per_class


def lvis():
    """Returns the package lvis.

    Raises:
      MissingExtra: if it is not installed.
    """
    try:
        import lvis as package
    except ImportError as error:
        raise MissingExtra("lvis", "lvis") from error
    return package


def judge(ground_truth, results, kind):
    """Returns a `lvis.LVISEval` that has judged; arguments are those of `lvis_ap`.

    Raises:
      MissingExtra: if the package is not installed.
    """
    package = lvis()

    class Content(package.LVIS):
        """Takes the content of a file where the package wants its path."""

        def _load_json(self, path):
            return path

    truth = Content(completed(ground_truth))
    results = [dict(each) for each in results]
    if not results:         # the package takes no empty list; a class that nobody has is left out
        results = [{"image_id": ground_truth["images"][0]["id"], "category_id": _NO_CLASS,
                    "bbox": [0, 0, 1, 1], "score": 0}]
    logging.getLogger("lvis.results").setLevel(logging.ERROR)       # warns of every list
    blank = Content({**ground_truth, "annotations": []})            # it is copied
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)         # np.float, before numpy 1.24
        judging = package.LVISEval(truth, package.LVISResults(blank, results, MAX_DETECTIONS), kind)
        judging.run()
    return judging
