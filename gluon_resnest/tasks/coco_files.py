"""What evaluations in COCO's formats share: the results' file, the ground truth and the judge."""
import contextlib
import io
import json

from gluon_resnest.errors import MissingExtra
from gluon_resnest.files import write_whole


def write_results(path, results):
    """Writes results as COCO's evaluation server takes them, whole or not at all."""
    write_whole(path, json.dumps(results))


def completed(ground_truth):
    """Returns the content of an annotation file with all that judges read, for them to write into.

    Annotations are numbered from 1 on, because judges take the number 0 for no annotation at all.
    Those that lack them get the area of their box and are no crowd.
    """
    rows = []
    for number, row in enumerate(ground_truth.get("annotations", ()), 1):
        _, _, width, height = row["bbox"]
        rows.append({"area": width * height, **row, "id": number,
                     "iscrowd": int(bool(row.get("iscrowd")))})
    return {**ground_truth, "annotations": rows}


def judge(ground_truth, results, kind):
    """Returns a pycocotools COCOeval that has judged; `.stats` and `.eval` are filled in.

    Args:
      ground_truth: content of an annotation file, see `completed`; not changed.
      results: list of dicts in COCO's result format, maybe empty; not changed.
      kind: "bbox", "segm" or "keypoints".
    """
    evaluation = cocoeval()
    from pycocotools.coco import COCO
    truth, found = COCO(), COCO()
    truth.dataset = completed(ground_truth)
    found.dataset = {"images": ground_truth["images"], "annotations": [],
                     "categories": ground_truth["categories"]}
    with contextlib.redirect_stdout(io.StringIO()):         # it prints its progress
        truth.createIndex()
        found.createIndex()
        if results:
            found = truth.loadRes([dict(result) for result in results])
        judging = evaluation.COCOeval(truth, found, kind)
        judging.evaluate()
        judging.accumulate()
        judging.summarize()
    return judging


def cocoeval():
    """Returns the module pycocotools.cocoeval.

    Raises:
      MissingExtra: if it is not installed.
    """
    try:
        from pycocotools import cocoeval
    except ImportError as error:
        raise MissingExtra("pycocotools", "coco") from error
    return cocoeval
